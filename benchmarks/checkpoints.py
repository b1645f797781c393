"""Checkpoints in and out, in programs that we did not write: how far are they from us?

    python benchmarks/checkpoints.py [--only families|formats|perplexity] [--models tiny,Qwen 3,smollm2-135m]

families: small random models of each family, made by transformers. The largest difference of a log-probability
(load, GPTQ, AWQ, W8A8, wanda: between transformers, which reads what we wrote, and the same weights here; GGUF:
llama.cpp, whose cache is float16), and how many greedy tokens of the engine are transformers' own. W8A8 in brackets:
with activations rounded, too; the largest is 127 steps here and in vLLM, 127.5 in transformers. A star: with a window
(or original positions) of 256 tokens, which GGUF can hold.
formats: what each program computes from each format; "text" is the number of greedy tokens that are the same as ours.
OpenVINO GenAI and gptqmodel take part if LABSUPPORT_READERS_PYTHON names a Python that has them (`make test-readers`).
perplexity: SmolLM2 on the first 8 windows of 512 tokens of the evaluation text, in llama.cpp and here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from checkpoint_families import (
    COUNT,
    TESTS,
    Folder,
    difference,
    families,
    greedy,
    in_llama,
    of_model,
    same,
    transformers,
)
from exported import WINDOWS, ascii_tokenizer, dequantized, in_transformers, logits
from families import hugging_face, ours
from torch import Tensor

from labsupport.lm import LanguageModel, Llama, corpus, load_lm, perplexity
from labsupport.quantization import quantize_model

READERS = os.environ.get("LABSUPPORT_READERS_PYTHON", "")


# ---------------------------------------------------------------------------------------------- formats


def formats(names: list[str], root: Path) -> pd.DataFrame:
    rows = [row for name in names for row in formats_of(name, Folder(root / name.replace(" ", "-")))]
    return pd.DataFrame(rows, columns=["model", "holds", "format", "program", "difference", f"text of {COUNT}"])


def formats_of(name: str, folder: Folder) -> list[tuple[str, ...]]:
    known = name in ("tiny", "smollm2-135m")
    lm = load_lm(name, verbose=False) if known else replace(ours(hugging_face(name)), tokenizer=ascii_tokenizer())
    text = lm.tokenizer.encode(corpus("evaluation")[:2000])[:64] if known else [3, 200, 17, 99, 5, 44, 250, 63] * 8
    learned = torch.tensor(lm.tokenizer.encode(corpus("calibration")[:60000])) if known else torch.cat(WINDOWS)
    windows = list(learned.split(512)[:4]) if known else WINDOWS
    rows: list[tuple[str, ...]] = []

    def quantized(method: str, **options: Any) -> LanguageModel:
        model: Any = quantize_model(lm.model, windows, method, **{"group_size": 32, "progress": False} | options)
        return replace(lm, model=model)

    def add(small: LanguageModel, holds: str, format: str, program: str, whole: Any, wanted: Llama) -> None:
        """``whole``: tokens -> logits of all, or an error in words."""
        try:
            found, expected = whole(text), logits(wanted, torch.tensor([text]))[0]
            equal = same(greedy(lambda tokens: whole(tokens)[-1], text), greedy(of_model(wanted), text))
            row = (name, holds, format, program, f"{difference(found, expected):.1e}", str(equal))
        except (RuntimeError, ValueError, OSError) as error:
            row = (name, holds, format, program, "-", str(error)[:60])
        rows.append(row)
        print(*row, sep=" | ", flush=True)

    def ask(small: LanguageModel, holds: str, format: str, program: str, wanted: Llama, **options: Any) -> None:
        """A program with an environment of its own; OpenVINO GenAI shows no logits."""
        path = folder.save(small, format, **options)
        try:
            answer = asked(program, path, text)
            equal = str(same(answer["continued"], greedy(of_model(wanted), text)))
            expected = logits(wanted, torch.tensor([text]))[0]
            far = f"{difference(torch.tensor(answer['logits']), expected):.1e}" if "logits" in answer else "-"
            rows.append((name, holds, " ".join([format, *options.values()]), program, far, equal))
        except RuntimeError as error:
            rows.append((name, holds, format, program, "-", str(error)[:60]))
        print(*rows[-1], sep=" | ", flush=True)

    def by(model: Any) -> Callable[[list[int]], Tensor]:
        return lambda tokens: logits(model, torch.tensor([tokens]))[0]

    dequantize = {"quantization_config": transformers().CompressedTensorsConfig(dequantize=True)}
    grid, even = quantized("gptq"), quantized("gptq", symmetric=True)
    whole, order = quantized("int8_dynamic"), quantized("gptq", act_order=True, static_groups=False)
    add(
        grid,
        "GPTQ",
        "labsupport",
        "labsupport",
        by(load_lm(folder.save(grid, "labsupport"), verbose=False).model),
        grid.model,
    )
    add(lm, "float", "huggingface", "transformers", by(in_transformers(folder.save(lm, "huggingface"))), lm.model)
    for small, holds, options in (
        (grid, "GPTQ", dequantize), (even, "GPTQ, symmetric", {}), (whole, "W8A8", {}),
    ):  # fmt: skip
        path = folder.save(small, "compressed-tensors", dtype=torch.float32)
        add(small, holds, "compressed-tensors", "transformers", by(in_transformers(path, **options)), small.model)
    for small, holds, kind in (
        (lm, "float", "F32"), (lm, "float", "F16"), (lm, "float", "Q8_0"), (grid, "GPTQ", None),
        (even, "GPTQ, symmetric", None),
    ):  # fmt: skip
        path = folder.save(small, "gguf", kind=kind)
        add(small, holds, f"gguf {kind or 'as it is'}", "llama.cpp", in_llama(path), small.model)
    for small, holds, format in (
        (even, "GPTQ, symmetric", "gptq"), (grid, "GPTQ", "gptq"), (order, "GPTQ, act-order", "gptq"),
        (quantized("awq"), "AWQ", "awq"),
    ):  # fmt: skip
        ask(small, holds, format, "gptqmodel", dequantized(small.model))
    ask(lm, "float", "gguf", "openvino", lm.model, kind="F16")
    ask(grid, "GPTQ", "gguf", "openvino", grid.model)
    return rows


def asked(program: str, path: Path, tokens: list[int]) -> Any:
    """
    Raises:
        RuntimeError: the program is not installed, or does not read the folder.
    """
    if not Path(READERS or "nowhere").exists():
        raise RuntimeError("not installed")
    (path / "prompt.json").write_text(json.dumps({"text": "x", "tokens": tokens}))
    command = [READERS, str(TESTS / "checkpoints" / "readers.py"), program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])[0]


# ------------------------------------------------------------------------------------------- perplexity


def perplexities(root: Path) -> pd.DataFrame:
    lm, folder, rows = load_lm("smollm2-135m", verbose=False), Folder(root / "perplexity"), []
    texts = {part: torch.tensor(lm.tokenizer.encode(corpus(part))) for part in ("calibration", "evaluation")}
    windows, evaluation = list(texts["calibration"].split(512)[:16]), texts["evaluation"][: 8 * 512]

    def add(label: str, small: LanguageModel, here: bool, **options: Any) -> None:
        program = in_llama(folder.save(small, "gguf", **options))
        losses = [F.cross_entropy(program(each.tolist())[:-1], each[1:]) for each in evaluation.split(512)]
        own = perplexity(small.model, evaluation) if here else math.nan
        rows.append((label, math.exp(float(torch.stack(losses).mean())), own))
        print(*rows[-1], flush=True)

    add("float, F32", lm, True, kind="F32")
    gptq: Any = quantize_model(lm.model, windows, "gptq", bits=4, group_size=32, progress=False)
    add("GPTQ, groups of 32, as Q4_1", replace(lm, model=gptq), True)
    for kind in ("Q4_1", "Q8_0"):
        add(f"llama.cpp's own {kind}", lm, False, kind=kind)
    for kind in ("Q4_K", "Q4_K_M"):
        add(f"{kind} without importance", lm, False, kind=kind)
        add(f"{kind} with importance", lm, False, kind=kind, calibration=windows)
    return pd.DataFrame(rows, columns=["SmolLM2", "in llama.cpp", "here"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["families", "formats", "perplexity"])
    parser.add_argument("--models", default="tiny,Qwen 3,smollm2-135m")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        for name, table in (
            ("families", lambda: families(Path(root))),
            ("formats", lambda: formats(options.models.split(","), Path(root))),
            ("perplexity", lambda: perplexities(Path(root))),
        ):
            if options.only in (None, name):
                print(f"\n{table().to_string()}\n", flush=True)


if __name__ == "__main__":
    main()
