"""The commands `labsupport compress`, `prune`, `distil`, `convert` and `perplexity`: a checkpoint in, a checkpoint out.

What they need is imported when they run.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from labsupport.console import errors_as_one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from labsupport.lm import LanguageModel


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


Model = Annotated[str, typer.Argument(help="tiny, smollm2-135m, or a folder with a Hugging Face checkpoint.")]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")]
OutFormat = Annotated[Format, typer.Option("--format", help="Who is to read it; see labsupport.checkpoints.")]
StoredAs = Annotated[
    Dtype | None, typer.Option("--dtype", help="Of what stays float; default: see labsupport.checkpoints.")
]
GgufKind = Annotated[Kind | None, typer.Option("--kind", help="gguf: how float matrices are stored; default: Q8_0.")]
Calibration = Annotated[Path | None, typer.Option(help="A UTF-8 text file; default: the course's calibration text.")]
Evaluation = Annotated[Path | None, typer.Option(help="A UTF-8 text file; default: the course's evaluation text.")]
Sequences = Annotated[int, typer.Option(min=1, help="Calibration sequences.")]
SeqLen = Annotated[int, typer.Option(min=2, help="Tokens per sequence.")]
Evaluate = Annotated[bool, typer.Option(help="Measure the perplexity before and after.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")]


def register(app: typer.Typer) -> None:
    """Add the commands to `labsupport`."""
    for command in (compress, prune, distil, convert, perplexity):
        app.command()(command)


def compress(
    model: Model,
    out: Out,
    method: Annotated[Method, typer.Option(help="The algorithm.")] = Method.gptq,
    format: OutFormat = Format.labsupport,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Bits per weight.")] = 4,
    group_size: Annotated[int, typer.Option(min=1, help="Weights that share a scale.")] = 64,
    symmetric: Annotated[bool, typer.Option(help="rtn and gptq: grids without a zero point of their own.")] = False,
    act_order: Annotated[bool, typer.Option(help="gptq: columns with large inputs first.")] = False,
    static_groups: Annotated[bool, typer.Option(help="gptq: groups that act-order does not change.")] = False,
    smooth: Annotated[bool, typer.Option(help="int8_*: SmoothQuant first.")] = False,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    sequences: Sequences = 16,
    seq_len: SeqLen = 512,
    evaluate: Evaluate = False,
    dtype: StoredAs = None,
    kind: GgufKind = None,
    device: Device = "cpu",
) -> None:
    """Quantize a model and write it as a checkpoint."""
    with errors_as_one_line():
        _must_be_new(out)
        from labsupport.quantization import quantize_model

        lm = _load(model, device)
        options: dict[str, Any] = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
        options |= {"act_order": act_order, "static_groups": static_groups if act_order else None}
        options |= {"smooth": smooth}
        windows = _windows(lm, _text(calibration, "calibration"), sequences, seq_len)
        _rehearse(lm, windows, method.value, options, format.value, dtype, kind)
        small = quantize_model(lm.model, windows, method.value, **options)
        report: Any = small.quantization_report
        about: dict[str, Any] = {"method": method.value, "bits": report.bits}
        if not method.value.startswith("int8"):
            about |= {"group_size": group_size, "symmetric": symmetric, "act_order": act_order}
        about |= {"bits_per_weight": report.bits_per_weight, "report": asdict(report)}
        about |= _calibrated(windows, seq_len)
        _finish(lm, small, out, format, dtype, kind, about, str(report), evaluation, seq_len, evaluate)


def prune(
    model: Model,
    out: Out,
    method: Annotated[PruningMethod, typer.Option(help="neurons: whole neurons; the others: weights.")] = (
        PruningMethod.wanda
    ),
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Share of the weights (neurons) that go.")] = 0.5,
    pattern: Annotated[str | None, typer.Option(help="Such as 2:4: two kept of every four neighbours.")] = None,
    format: OutFormat = Format.huggingface,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    sequences: Sequences = 16,
    seq_len: SeqLen = 512,
    evaluate: Evaluate = False,
    dtype: StoredAs = None,
    kind: GgufKind = None,
    device: Device = "cpu",
) -> None:
    """Prune a model and write it as a checkpoint."""
    with errors_as_one_line():
        _must_be_new(out)
        from labsupport.pruning import prune_llama, prune_model

        lm = _load(model, device)
        _rehearse_float(lm, format.value)
        windows = _windows(lm, _text(calibration, "calibration"), sequences, seq_len)
        if method is PruningMethod.neurons:
            if pattern is not None:
                raise ValueError(f"--pattern is for methods that remove weights; got {pattern} and --method neurons")
            small: Any = prune_llama(lm.model, windows, mlp_sparsity=sparsity, multiple_of=16)
        else:
            small = prune_model(lm.model, windows, method.value, sparsity, pattern)
        about = {"method": method.value, "sparsity": sparsity} | ({"pattern": pattern} if pattern else {})
        about |= _calibrated(windows, seq_len)
        _finish(lm, small, out, format, dtype, kind, about, str(small.pruning_report), evaluation, seq_len, evaluate)


def distil(
    model: Model,
    out: Out,
    mlp_sparsity: Annotated[float, typer.Option(min=0, max=1, help="Share of each MLP's neurons that go.")] = 0.3,
    steps: Annotated[int, typer.Option(min=1, help="Of training; 8 windows of 128 tokens each.")] = 20,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    checkpoint: Annotated[Path | None, typer.Option(help="A file to resume from, if the training is interrupted.")] = (
        None
    ),
    format: OutFormat = Format.huggingface,
    evaluation: Evaluation = None,
    seq_len: SeqLen = 512,
    evaluate: Evaluate = False,
    dtype: StoredAs = None,
    kind: GgufKind = None,
    device: Device = "cpu",
) -> None:
    """Remove neurons, let the smaller model learn from the untouched one, and write it as a checkpoint."""
    with errors_as_one_line():
        _must_be_new(out)
        from labsupport.distillation import recover as recovery
        from labsupport.progress import progress_bar

        lm = _load(model, device)
        _rehearse_float(lm, format.value)
        recipe = recovery.Recipe(mlp_sparsity, steps=steps, batch_size=8, learning_rate=learning_rate)
        small = recovery.prune_for(lm, recipe)
        ticks = iter(progress_bar(range(steps), "distil", "step", True, total=steps))
        next(ticks, None)
        recovery.recover(lm, small, recipe, checkpoint, after_step=lambda _: next(ticks, None))
        about = {"method": "neurons removed, then distilled", "sparsity": mlp_sparsity, "steps": steps}
        about |= {"tokens": recipe.tokens}
        _finish(lm, small, out, format, dtype, kind, about, "", evaluation, seq_len, evaluate)


def convert(model: Model, out: Out, format: OutFormat, dtype: StoredAs = None, kind: GgufKind = None) -> None:
    """Write a checkpoint in another format, without a second rounding."""
    with errors_as_one_line():
        _must_be_new(out)
        lm = _load(model, "cpu")
        _write(lm, out, format, dtype, kind, {})


def perplexity(
    model: Model,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text file; default: the course's evaluation text.")] = None,
    sequences: Annotated[int, typer.Option(min=1, help="How many windows are read at most.")] = 8,
    seq_len: SeqLen = 512,
    device: Device = "cpu",
) -> None:
    """Measure how well a checkpoint predicts a text."""
    with errors_as_one_line():
        lm = _load(model, device)
        found = _perplexity(lm, lm.model, _text(text, "evaluation"), seq_len, sequences)
        typer.echo(f"perplexity {found:.3f}")


def _must_be_new(out: Path) -> None:
    if out.exists():
        raise ValueError(f"--out must be a folder that does not exist yet; {out} exists")


def _load(model: str, device: str) -> LanguageModel:
    from labsupport.lm import ModelNotAvailable, load_lm

    try:
        lm = load_lm(model, device, verbose=False)
    except ModelNotAvailable as error:
        raise ValueError(str(error)) from error
    except (RuntimeError, AssertionError) as error:  # torch's, of a device that is not there
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    typer.echo(str(lm))
    return lm


def _text(path: Path | None, part: Literal["calibration", "evaluation"]) -> str:
    from labsupport.lm import corpus

    return corpus(part) if path is None else path.read_text(encoding="utf-8")


def _windows(lm: LanguageModel, text: str, sequences: int, seq_len: int) -> list[Tensor]:
    import torch

    device = lm.model.embed_tokens.weight.device
    tokens = torch.tensor(lm.tokenizer.encode(text), dtype=torch.int64, device=device)
    if len(tokens) < seq_len:
        raise ValueError(f"--calibration must hold at least --seq-len = {seq_len} tokens, it holds {len(tokens)}")
    return [window for window in tokens.split(seq_len)[:sequences] if len(window) == seq_len]


def _perplexity(lm: LanguageModel, model: nn.Module, text: str, seq_len: int, windows: int = 8) -> float:
    import torch

    from labsupport.lm import perplexity as measure

    device = lm.model.embed_tokens.weight.device
    tokens = torch.tensor(lm.tokenizer.encode(text), dtype=torch.int64, device=device)
    return measure(model, tokens[: windows * seq_len], seq_len)


def _calibrated(windows: list[Tensor], seq_len: int) -> dict[str, Any]:
    return {"calibration": {"sequences": len(windows), "seq_len": seq_len}}


def _rehearse(
    lm: LanguageModel, windows: list[Tensor], method: str, options: dict[str, Any], format: str,
    dtype: Dtype | None, kind: Kind | None,
) -> None:  # fmt: skip
    """All of it on the first layer and a few tokens: what the format cannot hold is refused before the work."""
    import tempfile

    from labsupport.checkpoints import save
    from labsupport.pruning.llama import with_layers
    from labsupport.quantization import quantize_model

    first = with_layers(lm.model, [0])
    small: Any = quantize_model(first, [windows[0][:64]], method, progress=False, **options)
    if format == "gguf":
        _rehearse_float(lm, format)
    with tempfile.TemporaryDirectory() as folder:
        save(replace(lm, model=small), Path(folder) / "first", format, _torch(dtype), kind and kind.value)


def _rehearse_float(lm: LanguageModel, format: str) -> None:
    if format in ("compressed-tensors", "gptq", "awq"):
        raise ValueError(f"--format {format} is for quantized models; take labsupport, huggingface or gguf")
    if format == "gguf":
        from labsupport.checkpoints.gguf_metadata import architecture

        architecture(lm.model.config)


def _torch(dtype: Dtype | None) -> Any:
    import torch

    return None if dtype is None else getattr(torch, dtype.value)


def _finish(
    lm: LanguageModel, small: Any, out: Path, format: Format, dtype: Dtype | None, kind: Kind | None,
    about: dict[str, Any], report: str, evaluation: Path | None, seq_len: int, evaluate: bool,
) -> None:  # fmt: skip
    if report:
        typer.echo(report)
    if evaluate:
        text = _text(evaluation, "evaluation")
        before, after = (_perplexity(lm, each, text, seq_len) for each in (lm.model, small))
        about["perplexity"] = {"before": before, "after": after}
        typer.echo(f"perplexity {before:.3f} -> {after:.3f}")
    _write(replace(lm, model=small), out, format, dtype, kind, about)


def _write(
    lm: LanguageModel, out: Path, format: Format, dtype: Dtype | None, kind: Kind | None, about: dict[str, Any]
) -> None:
    from labsupport.checkpoints import save
    from labsupport.checkpoints.card import how_to_load

    peak = _peak_megabytes()
    about = about | ({"peak_memory_mb": peak} if about and peak is not None else {})
    save(lm, out, format.value, _torch(dtype), kind and kind.value, about)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    typer.echo(f"written to {out}: {size:.1f} MB" + ("" if peak is None else f"; peak memory {peak:,.0f} MB"))
    for line in how_to_load(str(out), format.value):
        typer.echo(f"  {line}")


def _peak_megabytes() -> float | None:
    """Of this process; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
