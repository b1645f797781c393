"""What several commands of `labsupport serve` and `labsupport stack` share: options, keys, and loading a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from labsupport.lm import LanguageModel


class Quantization(StrEnum):
    rtn = "rtn"
    gptq = "gptq"
    awq = "awq"
    int8_dynamic = "int8_dynamic"
    int8_static = "int8_static"


def load(model: str, quantization: Quantization | None, bits: int, group_size: int) -> LanguageModel:
    """The model, compressed if wanted. What is loaded is printed."""
    from dataclasses import replace

    import torch

    from labsupport.lm import corpus, load_lm
    from labsupport.quantization import quantize_model

    lm = load_lm(model)
    if quantization is None:
        return lm
    tokens = torch.tensor(lm.tokenizer.encode(corpus("calibration")), dtype=torch.int64)
    windows = [window for window in tokens.split(512)[:16] if len(window) == 512]
    small = quantize_model(lm.model, windows, quantization.value, bits, group_size)
    typer.echo(str(small.quantization_report))
    return replace(lm, model=small, precision=f"{quantization.value}, from {lm.precision}")  # type: ignore[arg-type]


def read_keys(path: Path | None) -> list[str]:
    """The keys of a file, a line each; blank lines and lines that begin with # are left out.

    Raises:
        ValueError: it holds none: a server that then let everybody in would be a surprise.
    """
    if path is None:
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"--api-key-file must hold at least one key; {path.name} holds none")
    return keys
