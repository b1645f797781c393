"""The commands `labsupport compress`, `prune`, `distil`, `convert` and `perplexity`: a checkpoint in, a checkpoint out.

What they need is imported when they run.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from labsupport.checkpoints.command_steps import (
    finish,
    load_model,
    measured,
    must_be_new,
    partial,
    rehearse,
    rehearse_float,
    said_of_calibration,
    text_of,
    token_windows,
    told_if_interrupted,
    write_checkpoint,
)
from labsupport.checkpoints.options import (
    Calibration,
    Device,
    Dtype,
    Evaluate,
    Evaluation,
    Format,
    GgufKind,
    Method,
    Model,
    Out,
    OutFormat,
    PruningMethod,
    SeqLen,
    Sequences,
    StoredAs,
)
from labsupport.console import errors_as_one_line


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
    device: Device = "auto",
) -> None:
    """Quantize a model and write it as a checkpoint."""
    with errors_as_one_line():
        must_be_new(out)
        from labsupport.checkpoints.streaming import quantize_by_layer

        lm = load_model(model, device, dtype, on_disk=True)
        options: dict[str, Any] = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
        options |= {"act_order": act_order, "static_groups": static_groups if act_order else None}
        options |= {"smooth": smooth}
        windows = token_windows(lm, text_of(calibration, "calibration"), sequences, seq_len)
        rehearse(lm, windows, method.value, options, format.value, dtype, kind)
        with told_if_interrupted(partial(out)):
            small = quantize_by_layer(lm, windows, method.value, options, partial(out))
            report: Any = small.quantization_report
            about: dict[str, Any] = {"method": method.value, "bits": report.bits}
            if not method.value.startswith("int8"):
                about |= {"group_size": group_size, "symmetric": symmetric, "act_order": act_order}
            about |= {"bits_per_weight": report.bits_per_weight, "report": asdict(report)}
            about |= said_of_calibration(windows, seq_len)
            finish(lm, small, out, format, dtype, kind, about, str(report), evaluation, seq_len, evaluate)


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
    device: Device = "auto",
) -> None:
    """Prune a model and write it as a checkpoint."""
    with errors_as_one_line():
        must_be_new(out)
        from labsupport.checkpoints.streaming import prune_by_layer
        from labsupport.pruning import prune_llama

        lm = load_model(model, device, dtype, on_disk=method is not PruningMethod.neurons)
        rehearse_float(lm, format.value)
        windows = token_windows(lm, text_of(calibration, "calibration"), sequences, seq_len)
        with told_if_interrupted(partial(out)):
            if method is PruningMethod.neurons:
                if pattern is not None:
                    raise ValueError(f"--pattern is for methods that remove weights; got {pattern} with neurons")
                small: Any = prune_llama(lm.model, windows, mlp_sparsity=sparsity, multiple_of=16)
            else:
                small = prune_by_layer(lm, windows, method.value, sparsity, pattern, partial(out))
            about = {"method": method.value, "sparsity": sparsity} | ({"pattern": pattern} if pattern else {})
            about |= said_of_calibration(windows, seq_len)
            finish(lm, small, out, format, dtype, kind, about, str(small.pruning_report), evaluation, seq_len, evaluate)


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
    device: Device = "auto",
) -> None:
    """Remove neurons, let the smaller model learn from the untouched one, and write it as a checkpoint."""
    with errors_as_one_line():
        must_be_new(out)
        from labsupport.distillation import recover as recovery
        from labsupport.progress import progress_bar

        lm = load_model(model, device, dtype or Dtype.float32)  # in which it is trained
        rehearse_float(lm, format.value)
        recipe = recovery.Recipe(mlp_sparsity, steps=steps, batch_size=8, learning_rate=learning_rate)
        small = recovery.prune_for(lm, recipe)
        ticks = iter(progress_bar(range(steps), "distil", "step", True, total=steps))
        next(ticks, None)
        recovery.recover(lm, small, recipe, checkpoint, after_step=lambda _: next(ticks, None))
        about = {"method": "neurons removed, then distilled", "sparsity": mlp_sparsity, "steps": steps}
        about |= {"tokens": recipe.tokens}
        finish(lm, small, out, format, dtype, kind, about, "", evaluation, seq_len, evaluate)


def convert(model: Model, out: Out, format: OutFormat, dtype: StoredAs = None, kind: GgufKind = None) -> None:
    """Write a checkpoint in another format, without a second rounding."""
    with errors_as_one_line():
        must_be_new(out)
        lm = load_model(model, "cpu")
        write_checkpoint(lm, out, format, dtype, kind, {})


def perplexity(
    model: Model,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text file; default: the course's evaluation text.")] = None,
    sequences: Annotated[int, typer.Option(min=1, help="How many windows are read at most.")] = 8,
    seq_len: SeqLen = 512,
    device: Device = "auto",
    dtype: StoredAs = None,
) -> None:
    """Measure how well a checkpoint predicts a text."""
    with errors_as_one_line():
        lm = load_model(model, device, dtype)
        found = measured(lm, lm.model, text_of(text, "evaluation"), seq_len, sequences)
        typer.echo(f"perplexity {found:.3f}")
