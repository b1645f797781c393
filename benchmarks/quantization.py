"""Quantization of a whole language model, measured: perplexity, CPU seconds, and decoding speed against float32.

    python benchmarks/quantization.py [--model smollm2-135m] [--quick] [--only REGEX] [--threads 1]

Every figure under "ours" is measured in this run. The reference columns are constants, measured once with the original
authors' code (GPTQ: IST-DASLab/gptq; AWQ: mit-han-lab/llm-awq; W8A8: torchao) on the same model and text, one thread
of a two-core machine with AVX-512. Perplexities compare across machines; CPU seconds only roughly.

Text: Python's language reference, the first 16 windows of 512 tokens of its calibration part, the first 8 of its
evaluation part. All linear layers of the blocks; not the embedding or the head, except where "8-bit head" is said.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labsupport.lm import corpus, load_lm, perplexity
from labsupport.quantization import quantize_model
from labsupport.quantization.fast.available import available_kernels

SEQ_LEN, CALIBRATION_WINDOWS, EVALUATION_WINDOWS = 512, 16, 8
REFERENCE_FLOAT = 15.424


@dataclass
class Row:
    """One way to quantize, and what the reference reached with it (CPU seconds: for the whole model)."""

    label: str
    options: dict[str, Any]
    reference: float | None = None
    reference_cpu: str = ""
    quick: bool = False
    perplexity: float = field(default=0.0, init=False)
    cpu_seconds: float = field(default=0.0, init=False)
    bits_per_weight: float = field(default=0.0, init=False)


def rtn(bits: int, group_size: int | None, reference: float, symmetric: bool = False, quick: bool = False) -> Row:
    label = f"RTN  {_grid(bits, group_size)} {'symmetric' if symmetric else 'asymmetric'}"
    options = {"method": "rtn", "bits": bits, "group_size": group_size, "symmetric": symmetric}
    return Row(label, options, reference, "", quick)


def gptq(bits: int, group_size: int | None, reference: float, quick: bool = False, **options: Any) -> Row:
    order = {None: "", True: " act-order"}[options.get("act_order")]
    order += " dynamic groups" if options.get("static_groups") is False else ""
    options |= {"method": "gptq", "bits": bits, "group_size": group_size}
    return Row(f"GPTQ {_grid(bits, group_size)}{order}", options, reference, "70 to 92", quick)


def awq(bits: int, group_size: int | None, reference: float, clip: bool, quick: bool = False) -> Row:
    label = f"AWQ  {_grid(bits, group_size)} scales{' + clipping' if clip else ''}"
    options = {"method": "awq", "bits": bits, "group_size": group_size, "clip": clip}
    return Row(label, options, reference, "137 + 326" if clip else "137", quick)


def _grid(bits: int, group_size: int | None) -> str:
    return f"{bits}-bit " + ("per channel" if group_size is None else f"group {group_size}")


ROWS = [
    rtn(8, None, 15.46, symmetric=True),
    rtn(8, None, 15.42),
    rtn(4, 32, 18.51),
    rtn(4, 64, 23.41, symmetric=True),
    rtn(4, 64, 19.97, quick=True),
    rtn(4, 128, 22.18),
    rtn(4, None, 28.98),
    rtn(3, 64, 169.0, symmetric=True),
    rtn(3, 64, 65.6),
    gptq(4, 64, 18.92, quick=True),
    gptq(4, 64, 16.84, act_order=True, quick=True),
    gptq(4, 128, 19.63),
    gptq(4, None, 23.02),
    gptq(4, None, 19.57, act_order=True),
    gptq(3, 64, 31.5),
    gptq(3, 64, 25.5, act_order=True),
    gptq(3, 64, 25.0, act_order=True, static_groups=False),
    gptq(3, None, 74.5),
    gptq(3, None, 47.0, act_order=True),
    awq(4, 64, 18.46, clip=False),
    awq(4, 64, 17.66, clip=True, quick=True),
    awq(3, 64, 42.4, clip=False),
    awq(3, 64, 31.0, clip=True),
    Row("W8A8 per token", {"method": "int8_dynamic"}, 16.01),
    Row("W8A8 per token, smoothed", {"method": "int8_dynamic", "smooth": True}, quick=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="name or folder for load_lm")
    parser.add_argument("--quick", action="store_true", help="five rows of the table")
    parser.add_argument("--only", metavar="REGEX", help='rows whose label matches, such as "GPTQ 3-bit|AWQ"')
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-speed", action="store_true", help="perplexity only")
    parser.add_argument("--skip-perplexity", action="store_true", help="speed only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    lm = load_lm(arguments.model)
    tokens = {part: torch.tensor(lm.tokenizer.encode(corpus(part))) for part in ("calibration", "evaluation")}
    calibration = list(tokens["calibration"][: CALIBRATION_WINDOWS * SEQ_LEN].split(SEQ_LEN))
    is_reference_model = lm.name == "smollm2-135m"
    if not arguments.skip_perplexity:
        rows = [row for row in ROWS if row.quick or not arguments.quick]
        rows = [row for row in rows if arguments.only is None or re.search(arguments.only, row.label)]
        evaluation = tokens["evaluation"][: EVALUATION_WINDOWS * SEQ_LEN]
        exact = perplexity(lm.model, evaluation, SEQ_LEN)
        for row in (bar := tqdm(rows, unit="row")):
            bar.set_description(row.label)
            measure(row, lm.model, calibration, evaluation)
        print_table(rows, exact, is_reference_model)
    if not arguments.skip_speed:
        print_speed(lm.model, calibration, tokens["evaluation"])


def measure(row: Row, model: nn.Module, calibration: list[Tensor], evaluation: Tensor) -> None:
    start = time.process_time()
    quantized: Any = quantize_model(model, calibration, progress=False, **row.options)
    row.cpu_seconds = time.process_time() - start
    row.bits_per_weight = quantized.quantization_report.bits_per_weight
    row.perplexity = perplexity(quantized, evaluation, SEQ_LEN)


def print_table(rows: list[Row], exact: float, with_reference: bool) -> None:
    print(f"\nPerplexity on {EVALUATION_WINDOWS} windows of {SEQ_LEN} tokens, {CALIBRATION_WINDOWS} for calibration")
    reference = f"   reference {REFERENCE_FLOAT:.3f}" if with_reference else ""
    print(f"float32: ours {exact:.3f}{reference}\n")
    print(f"{'':38s} {'bits':>6s} {'ours':>10s} {'reference':>10s} {'ratio':>6s}  {'CPU s':>6s} {'reference':>10s}")
    for row in rows:
        reference, ratio, reference_cpu = "", "", ""
        if with_reference and row.reference is not None:
            reference, ratio = f"{row.reference:.2f}", f"{row.perplexity / row.reference:.3f}"
            reference_cpu = row.reference_cpu
        print(
            f"{row.label:38s} {row.bits_per_weight:6.3f} {row.perplexity:10.3f} {reference:>10s} {ratio:>6s}  "
            f"{row.cpu_seconds:6.1f} {reference_cpu:>10s}"
        )
    smoothed = next((row for row in rows if "smoothed" in row.label), None)
    if smoothed is not None:
        print(f"\nW8A8 smoothed / float perplexity: {smoothed.perplexity / exact:.4f}")


# ------------------------------------------------------------------------------------------------ decoding speed

VARIANTS: dict[str, dict[str, Any]] = {
    "int8 weights": {"method": "rtn", "bits": 8, "group_size": None, "symmetric": True},
    "int8 weights, 8-bit head": {"method": "rtn", "bits": 8, "group_size": None, "symmetric": True, "head_bits": 8},
    "int4 weights, group 64": {"method": "rtn", "bits": 4, "group_size": 64},
    "int4 weights, group 64, 8-bit head": {"method": "rtn", "bits": 4, "group_size": 64, "head_bits": 8},
    "W8A8": {"method": "int8_dynamic"},
    "W8A8, 8-bit head": {"method": "int8_dynamic", "head_bits": 8},
}


def print_speed(model: nn.Module, calibration: list[Tensor], text: Tensor, prompt: int = 64, new: int = 48) -> None:
    print(f"\nDecoding, {torch.get_num_threads()} thread(s); kernels: {available_kernels()}")
    print(f"tokens a second of CPU time (ratio to float32): prompt {prompt}, median of {new} steps, taking turns")
    models = {"float32": model} | {
        name: quantize_model(model, calibration[:1], progress=False, **options) for name, options in VARIANTS.items()
    }
    batches = (1, 4, 16)
    seconds = {batch: decode_seconds(models, text[: batch * prompt].view(batch, prompt), new) for batch in batches}
    print(f"{'':38s} " + " ".join(f"{f'batch {batch}':>16s}" for batch in batches))
    for name in models:
        cells = []
        for batch in batches:
            ratios = [a / b for a, b in zip(seconds[batch]["float32"], seconds[batch][name], strict=True)]
            cells.append(f"{batch / statistics.median(seconds[batch][name]):8.1f} ({statistics.median(ratios):.2f})")
        print(f"{name:38s} " + " ".join(f"{cell:>16s}" for cell in cells))


@torch.no_grad()
def decode_seconds(models: dict[str, nn.Module], prompts: Tensor, new: int) -> dict[str, list[float]]:
    """CPU seconds of each decode step of each model. All take step 1, then all step 2: noise falls on them alike."""
    states = {}
    for name, model in models.items():
        cache = SlotCache(model.config, len(prompts), prompts.shape[1] + new)
        states[name] = cache, model(prompts, cache)[:, -1:].argmax(-1)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in tqdm(range(new), desc=f"decode, batch {len(prompts)}", unit="step"):
        for name, model in models.items():
            cache, token = states[name]
            start = time.process_time()
            token = model(token, cache)[:, -1:].argmax(-1)
            seconds[name].append(time.process_time() - start)
            states[name] = cache, token
    return seconds


class SlotCache:
    """Keys and values written in place: what a decode step costs should not be the cache's copying."""

    def __init__(self, config: Any, batch: int, capacity: int) -> None:
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.length = 0

    def positions(self, batch: int, time: int) -> Tensor:
        return torch.arange(self.length, self.length + time)[None]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        stop = self.length + key.shape[2]
        for store, new in ((self.keys, key), (self.values, value)):
            store[layer_index, :, :, self.length : stop] = new
        keys, values = self.keys[layer_index, :, :, :stop], self.values[layer_index, :, :, :stop]
        return F.scaled_dot_product_attention(query, keys, values, is_causal=key.shape[2] > 1, enable_gqa=True)

    def advance(self, time: int) -> None:
        self.length += time


if __name__ == "__main__":
    main()
