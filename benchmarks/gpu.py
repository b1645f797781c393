"""Everything on a GPU in at most ten minutes, with one log: ``make gpu``, or ``python benchmarks/gpu.py [--log FILE]``.

In this order: what the machine is, the tests marked `gpu`, what this GPU allows and what decoding reaches (in tables
for docs/gpu.md), and the chapters, as far as the time goes. Exits with 1 if something failed, with 2 without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labsupport.device import choose_dtype, describe
from labsupport.kvcache import measure_machine
from labsupport.lm.config import LlamaConfig
from labsupport.lm.model import Llama
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear
from labsupport.quantization.rtn import rtn_quantize
from labsupport.timing import median_milliseconds

ROOT = Path(__file__).parents[1]
SECONDS = 600  # for everything
SEVEN_B = LlamaConfig(32000, 4096, 11008, 2, 32, 32, tie_embeddings=False)  # two layers of Llama-2-7B
PACKED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "int8 weights": Int8WeightLinear.from_float,
    "int4 weights, group 64": lambda linear: Int4WeightLinear(rtn_quantize(linear.weight, 4, 64)),
    "W8A8 per token": DynamicQuantizedLinear.from_float,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=ROOT / "gpu.log")
    log_path: Path = parser.parse_args().log
    if not torch.cuda.is_available():
        print("no CUDA GPU is here: nothing was tried")
        sys.exit(2)
    started, failed = time.monotonic(), []

    def left() -> float:
        return SECONDS - (time.monotonic() - started)

    with log_path.open("w", encoding="utf-8") as log:

        def say(text: str) -> None:
            for stream in (sys.stdout, log):
                print(text, file=stream, flush=True)

        def run(name: str, command: list[str], seconds: float) -> None:
            say(f"\n== {name} ({left():.0f} s left)")
            try:
                done = subprocess.run(
                    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds)
                )
                say((done.stdout + done.stderr)[-6000:])
                failed.extend([name] if done.returncode else [])
            except subprocess.TimeoutExpired:
                say(f"not done in {seconds:.0f} s")
                failed.append(name)

        say(
            f"== {describe('cuda')}; compute capability {torch.cuda.get_device_capability()}; torch {torch.__version__}"
        )
        run("tests", ["-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "tests/test_triton.py"], 180)
        for title, table in (("machine", machine_table), ("linear layers", layer_table), ("decoding", decode_table)):
            say(f"\n== {title} ({left():.0f} s left)")
            try:
                say(table())
            except Exception as error:
                say(f"{type(error).__name__}: {error}")
                failed.append(title)
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            if left() < 60:
                say(f"\n== {notebook.name}: no time left")
                continue
            arguments = ["-m", "jupyter", "execute", "--timeout=300", f"--output={log_path.parent}/{notebook.stem}-gpu",
                         str(notebook)]  # fmt: skip
            run(notebook.name, arguments, left())
        say(f"\n== failed: {', '.join(failed) or 'nothing'}; {SECONDS - left():.0f} s")
    sys.exit(1 if failed else 0)


def machine_table() -> str:
    lines = ["| precision | GB/s | TFLOP/s |", "|---|---|---|"]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        machine = measure_machine(2**30, dtype, device="cuda")
        lines.append(f"| {dtype} | {machine.bytes_per_second / 1e9:.0f} | {machine.flops_per_second / 1e12:.1f} |")
    return "\n".join(lines)


@torch.no_grad()
def layer_table() -> str:
    """One matrix of Llama-2-7B's MLP: milliseconds, and the share of the roofline that reading it allows."""
    dtype = choose_dtype("cuda")
    linear = nn.Linear(4096, 11008, bias=False, device="cuda", dtype=dtype)
    memory = measure_machine(2**30, dtype, device="cuda").bytes_per_second
    layers: dict[str, nn.Module] = {str(dtype): linear} | {name: make(linear) for name, make in PACKED.items()}
    lines = ["| 4096 × 11008 | MB | kernel | ms, 1 row | of the roof | ms, 16 rows |", "|---|---|---|---|---|---|"]
    inputs = [torch.randn(rows, 4096, device="cuda", dtype=dtype) for rows in (1, 16)]
    times = [median_milliseconds({n: partial(m, x) for n, m in layers.items()}, 25, "cuda") for x in inputs]
    for name, layer in layers.items():
        size = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
        kernel = type(getattr(layer, "_kernel", None)).__name__
        one, many = (found[name] for found in times)
        share = size / memory / (one / 1e3)
        lines.append(f"| {name} | {size / 1e6:.1f} | {kernel} | {one:.3f} | {share:.0%} | {many:.3f} |")
    return "\n".join(lines)


@torch.no_grad()
def decode_table() -> str:
    """A decode step of two layers of Llama-2-7B after 512 tokens, one sequence and 16, paged cache."""
    from labsupport.kvcache import PagedBatch, PagedKVCache, QuantizedPagedKVCache

    dtype = choose_dtype("cuda")
    with torch.device("cuda"):
        base = Llama(SEVEN_B).to(dtype).eval()
    lines = ["| weights | cache | ms, 1 sequence | ms, 16 sequences |", "|---|---|---|---|"]
    for name, make in ({str(dtype): None} | PACKED).items():
        model: Any = copy.deepcopy(base)
        if make is not None:
            for layer in model.layers:
                for part in (layer.self_attn, layer.mlp):
                    for own, linear in list(part.named_children()):
                        setattr(part, own, make(linear))
        for kind, options in ((PagedKVCache, {}), (QuantizedPagedKVCache, {"bits": 8})):
            row = []
            for count in (1, 16):
                cache = kind.for_model(model, 40 * count, enable_prefix_caching=False, **options)
                for i in range(count):
                    cache.add_sequence(i)
                batch = PagedBatch(cache, list(range(count)))
                model.hidden_states(torch.zeros(count, 512, dtype=torch.int64, device="cuda"), batch)
                token = torch.zeros(count, 1, dtype=torch.int64, device="cuda")
                step = partial(model, token, batch)
                row.append(median_milliseconds({"step": step}, 15)["step"])
            lines.append(f"| {name} | {'8 bits' if options else str(dtype)} | {row[0]:.2f} | {row[1]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
