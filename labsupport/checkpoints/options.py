"""What the commands of checkpoints take: choices, and options that several of them share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Method(StrEnum):
    rtn = "rtn"
    gptq = "gptq"
    awq = "awq"
    int8_dynamic = "int8_dynamic"
    int8_static = "int8_static"


class PruningMethod(StrEnum):
    magnitude = "magnitude"
    wanda = "wanda"
    sparsegpt = "sparsegpt"
    neurons = "neurons"


class Format(StrEnum):
    labsupport = "labsupport"
    huggingface = "huggingface"
    compressed_tensors = "compressed-tensors"
    gptq = "gptq"
    awq = "awq"
    gguf = "gguf"


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Kind(StrEnum):
    f32 = "F32"
    f16 = "F16"
    q8_0 = "Q8_0"
    q4_0 = "Q4_0"
    q4_1 = "Q4_1"
    q2_k = "Q2_K"
    q3_k = "Q3_K"
    q4_k = "Q4_K"
    q5_k = "Q5_K"
    q6_k = "Q6_K"
    q4_k_m = "Q4_K_M"
    q5_k_m = "Q5_K_M"

    @property
    def is_k_quant(self) -> bool:
        return "_K" in self.value


Model = Annotated[str, typer.Argument(help="tiny, smollm2-135m, or a folder with a Hugging Face checkpoint.")]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")]
OutFormat = Annotated[Format, typer.Option("--format", help="Who is to read it; see labsupport.checkpoints.")]
StoredAs = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="Of what stays float: in the arithmetic of a GPU (default: bfloat16, on old ones float16; a CPU computes "
        "in float32), and in what is written (default: see labsupport.checkpoints).",
    ),
]
GgufKind = Annotated[
    Kind | None,
    typer.Option("--kind", help="gguf: how float matrices are stored; default: Q8_0. K-quants heed the calibration."),
]
Calibration = Annotated[Path | None, typer.Option(help="A UTF-8 text file; default: the course's calibration text.")]
Evaluation = Annotated[Path | None, typer.Option(help="A UTF-8 text file; default: the course's evaluation text.")]
Sequences = Annotated[int, typer.Option(min=1, help="Calibration sequences.")]
SeqLen = Annotated[int, typer.Option(min=2, help="Tokens per sequence.")]
Evaluate = Annotated[bool, typer.Option(help="Measure the perplexity before and after.")]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps, ...")]
