"""Options that several commands of serving share, and what `--model` with `--quantization` loads."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from labsupport.lm import LanguageModel


Model = Annotated[str, typer.Option(help="tiny, smollm2-135m, or the folder of a Hugging Face Llama.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Requests that an engine runs at the same time.")]
MaxModelLen = Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt and its answer together.")]
NumBlocks = Annotated[int | None, typer.Option(min=1, help="Blocks of the KV cache; default: by free memory.")]
ApiKeyFile = Annotated[
    Path | None, typer.Option(help="A file with one API key per line; without it everybody has access.")
]
DrainSeconds = Annotated[
    float, typer.Option(min=0, help="How long running requests may take to finish when told to stop.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: torch decides.")]


class Quantization(StrEnum):
    rtn = "rtn"
    gptq = "gptq"
    awq = "awq"
    int8_dynamic = "int8_dynamic"
    int8_static = "int8_static"


def load(model: str, quantization: Quantization | None, bits: int, group_size: int) -> LanguageModel:
    """The model, compressed if requested. Prints what it loads."""
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
