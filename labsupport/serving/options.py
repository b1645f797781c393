"""Options that several commands of serving share, and what `--model` with `--quantization` loads."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from labsupport.lm import LanguageModel


Model = Annotated[str, typer.Option(help="tiny, smollm2-135m, or the folder of a Hugging Face Llama.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Requests that an engine runs at the same time.")]
MaxModelLen = Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt and its answer together.")]
ChatTemplateFile = Annotated[
    Path | None, typer.Option("--chat-template", help="A Jinja template; default: the one that lies with the model.")
]
NumBlocks = Annotated[int | None, typer.Option(min=1, help="Blocks of the KV cache; default: by free memory.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with one API key per line; without it everybody has access. Keys are for /v1/: /health, /ready, "
        "/metrics, /docs and /openapi.json are open to all, unless --keys-everywhere."
    ),
]
KeysEverywhere = Annotated[bool, typer.Option("--keys-everywhere", help="Every path needs a key.")]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-hosts",
        help="A name that clients may call this server by (their Host header); several times for several names, * for "
        "any. Default: the names of this machine if --host is one of them, else any.",
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin",
        help="A page, such as https://example.org, whose scripts may use the API from a browser. Default: none.",
    ),
]
MaxConnections = Annotated[int, typer.Option(min=1, help="Open connections, of all clients together.")]
DrainSeconds = Annotated[
    float, typer.Option(min=0, help="How long running requests may take to finish when told to stop.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: torch decides.")]

VLLMOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vllm-option",
        help="With --engine vllm: NAME=VALUE, a field of its AsyncEngineArgs; several times for several. On a CPU for "
        "example dtype=float32 and gpu_memory_utilization=0.3, which there is the share of the machine's memory.",
    ),
]


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps, ...")]
Precision = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Of the arithmetic; default: float32, on GPUs bfloat16, on old ones float16."),
]


class Quantization(StrEnum):
    rtn = "rtn"
    gptq = "gptq"
    awq = "awq"
    int8_dynamic = "int8_dynamic"
    int8_static = "int8_static"


def vllm_options(given: list[str] | None) -> dict[str, Any]:
    """``["dtype=float32", "gpu_memory_utilization=0.3"]`` as fields. A value that is JSON is read as such.

    Raises:
        ValueError: one has no name or no value, or two have the same name.
    """
    found: dict[str, Any] = {}
    for each in given or ():
        name, _, value = each.partition("=")
        name = name.strip().replace("-", "_")
        if not name.isidentifier() or not value or name in found:
            raise ValueError(f"--vllm-option must be NAME=VALUE, each name once; got {each!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def load(
    model: str,
    quantization: Quantization | None,
    bits: int,
    group_size: int,
    device: str = "cpu",
    dtype: Dtype | None = None,
) -> LanguageModel:
    """The model, compressed if requested. Prints what it loads."""
    from dataclasses import replace

    import torch

    from labsupport.device import choose_device, choose_dtype, describe
    from labsupport.lm import corpus, load_lm
    from labsupport.quantization import quantize_model

    place = choose_device(device)
    lm = load_lm(model, place, choose_dtype(place, None if dtype is None else dtype.value))
    typer.echo(f"on {describe(place)}")
    if quantization is None:
        return lm
    tokens = torch.tensor(lm.tokenizer.encode(corpus("calibration")), dtype=torch.int64)
    windows = [window for window in tokens.split(512)[:16] if len(window) == 512]
    small = quantize_model(lm.model, windows, quantization.value, bits, group_size)
    typer.echo(str(small.quantization_report))
    return replace(lm, model=small, precision=f"{quantization.value}, from {lm.precision}")  # type: ignore[arg-type]
