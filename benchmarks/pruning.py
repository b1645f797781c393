"""Perplexity of pruned models: ``python benchmarks/pruning.py [--quick]``, some minutes for SmolLM2.

Half of the weights of all linear layers of the blocks, unstructured and 2:4, by each method. Text: 16 windows of 512
tokens to calibrate, 8 other windows to evaluate. CPU seconds are those of `prune_model` as a whole, the model's forward
passes included. Beside them stands what the authors' own code reached with the same model and text; its seconds were
measured on another day, on a machine of another kind.

Then 30 % of the MLP neurons are removed (a multiple of 16 is left, which matrix products like): milliseconds of an
MLP and of a whole layer, dense and pruned in turns, and the bytes of the saved file against what the sizes say.

``--quick`` takes `tiny`, for which there is no reference. ``--only sparsegpt`` runs one method, ``--only structured``
the last part alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from labsupport.lm import LanguageModel, corpus, load_lm, perplexity
from labsupport.lm.config import LlamaConfig
from labsupport.lm.folder import save_lm
from labsupport.pruning import prune_llama, prune_model
from labsupport.timing import median_milliseconds

WINDOW, CALIBRATION_WINDOWS, EVALUATION_WINDOWS = 512, 16, 8

RUNS: tuple[tuple[str, str | None, str], ...] = (  # method, pattern, scope
    ("magnitude", None, "global"),
    ("magnitude", None, "layer"),
    ("magnitude", "2:4", "layer"),
    ("wanda", None, "layer"),
    ("wanda", "2:4", "layer"),
    ("sparsegpt", None, "layer"),
    ("sparsegpt", "2:4", "layer"),
)
# The authors' code on SmolLM2-135M: perplexity and CPU seconds.
FLOAT_REFERENCE = 15.424
REFERENCE: dict[tuple[str, str | None, str], tuple[float, float | None]] = {
    ("magnitude", None, "global"): (1173, None),
    ("magnitude", None, "layer"): (575, None),
    ("magnitude", "2:4", "layer"): (14274, None),
    ("wanda", None, "layer"): (29.9, 52),
    ("wanda", "2:4", "layer"): (82.1, 49),
    ("sparsegpt", None, "layer"): (21.4, 96),
    ("sparsegpt", "2:4", "layer"): (30.9, 90),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tiny model instead of SmolLM2")
    parser.add_argument(
        "--only", action="append", choices=["magnitude", "wanda", "sparsegpt", "structured"], help="may be repeated"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    lm = load_lm("tiny" if arguments.quick else "smollm2-135m")
    calibration = list(tokens(lm, "calibration", CALIBRATION_WINDOWS * WINDOW).view(-1, WINDOW))
    evaluation = tokens(lm, "evaluation", EVALUATION_WINDOWS * WINDOW)
    against = "" if arguments.quick else f" (reference {FLOAT_REFERENCE})"
    print(
        f"float: perplexity {perplexity(lm.model, evaluation, WINDOW):.3f}{against}; torch {torch.__version__}",
        flush=True,
    )

    rows = []
    for run in RUNS:
        if arguments.only and run[0] not in arguments.only:
            continue
        rows.append(measure(lm, run, calibration, evaluation, None if arguments.quick else REFERENCE[run]))
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if rows:
        print("\n" + pd.DataFrame(rows).to_string(index=False))
    if not arguments.only or "structured" in arguments.only:
        structured(lm, calibration, evaluation)


def measure(
    lm: LanguageModel, run: tuple[str, str | None, str], calibration: list[Tensor], evaluation: Tensor,
    reference: tuple[float, float | None] | None,
) -> dict[str, object]:  # fmt: skip
    method, pattern, scope = run
    start = time.process_time()
    pruned: Any = prune_model(lm.model, calibration, method=method, pattern=pattern, scope=scope)
    seconds = time.process_time() - start
    result = perplexity(pruned, evaluation, WINDOW)
    row: dict[str, object] = {
        "method": method if scope == "layer" else f"{method}, {scope}",
        "pattern": pattern or "50 %",
        "zeros": f"{pruned.pruning_report.sparsity:.4%}",
        "perplexity": f"{result:.2f}",
        "CPU s": f"{seconds:.1f}",
    }
    if reference is not None:
        row["reference"] = reference[0]
        row["to reference"] = f"{result / reference[0] - 1:+.1%}"
        row["reference CPU s"] = reference[1] or ""
    return row


def structured(lm: LanguageModel, calibration: list[Tensor], evaluation: Tensor, sparsity: float = 0.3) -> None:
    start = time.process_time()
    pruned = prune_llama(lm.model, calibration, sparsity, multiple_of=16)
    seconds = time.process_time() - start
    quality = perplexity(pruned, evaluation, WINDOW)
    print(f"\n{sparsity:.0%} of the MLP neurons removed; {pruned.pruning_report}")
    print(f"perplexity {quality:.2f} with nothing retrained, {seconds:.1f} CPU s")

    rows = []
    for num_tokens in (1, 64, WINDOW):
        x = torch.randn(1, num_tokens, lm.model.config.hidden_size)
        rotary = lm.model.rotary(torch.arange(num_tokens)[None])
        functions: dict[str, Any] = {}
        for name, model in (("dense", lm.model), ("pruned", pruned)):
            layer: Any = model.layers[0]
            functions[f"MLP {name}"] = lambda layer=layer: layer.mlp(x)  # noqa: B023
            functions[f"layer {name}"] = lambda layer=layer: layer(x, rotary)  # noqa: B023
        with torch.no_grad():
            ms = median_milliseconds(functions, repeats=41)
        rows += [
            {"part": part, "tokens": num_tokens, "dense ms": ms[f"{part} dense"], "pruned ms": ms[f"{part} pruned"],
             "speed-up": ms[f"{part} dense"] / ms[f"{part} pruned"]}
            for part in ("MLP", "layer")
        ]  # fmt: skip
    print(pd.DataFrame(rows).round(3).to_string(index=False))

    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("dense", lm.model), ("pruned", pruned)):
            save_lm(replace(lm, model=model), Path(folder) / name, torch.float16)
            content = Path(folder) / name / "model.safetensors"
            with content.open("rb") as file:
                header = 8 + int.from_bytes(file.read(8), "little")
            computed = 2 * parameters(model.config)
            print(f"{name}: file in float16 {content.stat().st_size:,} bytes = header {header:,} + tensors "
                  f"{content.stat().st_size - header:,}; computed from the config {computed:,}")  # fmt: skip


def parameters(config: LlamaConfig) -> int:
    """Of a Llama with tied embeddings, from its sizes."""
    assert config.head_dim is not None and config.tie_embeddings
    hidden = config.hidden_size
    attention = 2 * hidden * config.head_dim * (config.num_heads + config.num_kv_heads)
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    return config.vocab_size * hidden + config.num_layers * layer + hidden


def tokens(lm: LanguageModel, part: str, count: int) -> Tensor:
    """The first ``count`` tokens of a part of the corpus."""
    return torch.tensor(lm.tokenizer.encode(corpus(part)))[:count]  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
