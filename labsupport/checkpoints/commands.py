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
    made_before,
    measured,
    must_be_new,
    partial,
    said_of_calibration,
    text_of,
    token_windows,
    told_if_interrupted,
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
from labsupport.checkpoints.refusals import check_method, check_written, rehearse, rehearse_float
from labsupport.console import errors_as_one_line


def register(app: typer.Typer) -> None:
    """Add the commands to `labsupport`."""
    for command in (compress, prune, distil, convert, perplexity):
        app.command()(command)


def compress(
    model: Model,
    out: Out,
    method: Annotated[
        Method | None, typer.Option(help="The algorithm; default: gptq, but for a K-quant (--kind), which is one.")
    ] = None,
    format: OutFormat = Format.labsupport,
    bits: Annotated[int | None, typer.Option(min=2, max=8, help="Bits per weight; default: 4. int8_*: 8.")] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Weights that share a scale; default: 64.")] = None,
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
        check_written(format, dtype, kind)
        check_method(method, kind, bits, group_size, symmetric, act_order, static_groups, smooth)
        from labsupport.checkpoints.streaming import quantize_by_layer

        lm = load_model(model, device, dtype, on_disk=True)
        windows = token_windows(lm, text_of(calibration, "calibration"), sequences, seq_len)
        about: dict[str, Any] = said_of_calibration(windows, seq_len)
        if kind is not None and kind.is_k_quant:
            rehearse_float(lm, format, dtype, kind)
            about |= {"method": "a K-quant of llama.cpp, with an importance matrix"}
            finish(lm, lm.model, out, format, dtype, kind, about, "", evaluation, seq_len, evaluate, windows)
            return
        name = (method or Method.gptq).value
        options: dict[str, Any] = {"bits": bits or 4, "group_size": group_size or 64, "symmetric": symmetric}
        options |= {"act_order": act_order, "static_groups": static_groups if act_order else None}
        options |= {"smooth": smooth}
        rehearse(lm, windows, name, options, format, dtype, kind)
        with told_if_interrupted(partial(out)):
            small = quantize_by_layer(lm, windows, name, options, partial(out))
            report: Any = small.quantization_report
            about |= {"method": name, "bits": report.bits}
            if name.startswith("int8"):
                about |= {"smooth": smooth}
            else:
                about |= {"group_size": group_size or 64, "symmetric": symmetric, "act_order": act_order}
            about |= {"bits_per_weight": report.bits_per_weight, "report": asdict(report)}
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
        check_written(format, dtype, kind)
        if method is PruningMethod.neurons and pattern is not None:
            raise ValueError(f"--pattern is for methods that remove weights; got {pattern} and --method neurons")
        from labsupport.checkpoints.streaming import prune_by_layer
        from labsupport.pruning import prune_llama

        lm = load_model(model, device, dtype, on_disk=method is not PruningMethod.neurons)
        rehearse_float(lm, format, dtype, kind)
        windows = token_windows(lm, text_of(calibration, "calibration"), sequences, seq_len)
        with told_if_interrupted(partial(out)):
            if method is PruningMethod.neurons:
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
        check_written(format, dtype, kind)
        from labsupport.distillation import recover as recovery
        from labsupport.progress import progress_bar

        lm = load_model(model, device, dtype or Dtype.float32)  # in which it is trained
        rehearse_float(lm, format, dtype, kind)
        recipe = recovery.Recipe(mlp_sparsity, steps=steps, batch_size=8, learning_rate=learning_rate)
        small = recovery.prune_for(lm, recipe)
        ticks = iter(progress_bar(range(steps), "distil", "step", True, total=steps))
        next(ticks, None)
        recovery.recover(lm, small, recipe, checkpoint, after_step=lambda _: next(ticks, None))
        about = {"method": "neurons removed, then distilled", "sparsity": mlp_sparsity, "steps": steps}
        about |= {"tokens": recipe.tokens}
        finish(lm, small, out, format, dtype, kind, about, "", evaluation, seq_len, evaluate)


def convert(
    model: Model,
    out: Out,
    format: OutFormat,
    dtype: StoredAs = None,
    kind: GgufKind = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    sequences: Sequences = 16,
    seq_len: SeqLen = 512,
    evaluate: Evaluate = False,
) -> None:
    """Write a checkpoint in another format, without a second rounding. K-quants (--kind) heed the calibration."""
    with errors_as_one_line():
        must_be_new(out)
        check_written(format, dtype, kind)
        windows = None
        if calibration is not None and not (kind is not None and kind.is_k_quant):
            raise ValueError("--calibration is for K-quants: give --kind Q4_K, say, or leave it out")
        lm = load_model(model, "cpu")
        about = made_before(lm)
        if format is Format.gguf:  # whose other matrices may be rounded again
            about = {name: value for name, value in about.items() if name not in ("perplexity", "evaluation")}
        if kind is not None and kind.is_k_quant:
            rehearse_float(lm, format, dtype, kind)
            windows = token_windows(lm, text_of(calibration, "calibration"), sequences, seq_len)
            about |= said_of_calibration(windows, seq_len)
        finish(lm, lm.model, out, format, dtype, kind, about, "", evaluation, seq_len, evaluate, windows)


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
