"""The command `labsupport`. Torch and the algorithms are imported inside the commands, so that `--help` is fast."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labsupport import __version__
from labsupport.console import errors_as_one_line
from labsupport.files import replacing_folder
from labsupport.grading import commands as grading_commands
from labsupport.serving import commands as serving_commands

if TYPE_CHECKING:
    from torch import Tensor, nn

    from labsupport.lm import LanguageModel

app = typer.Typer(
    help="Make large language models smaller and faster: the commands of the course.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Method(StrEnum):
    rtn = "rtn"
    gptq = "gptq"
    awq = "awq"
    int8_dynamic = "int8_dynamic"
    int8_static = "int8_static"


def main() -> None:
    """The console script. Characters that the terminal cannot encode are escaped instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Report what is installed, which devices and cached models there are, what is missing and how to get it.

    Exits with 0 if every chapter can be run, else with 1.
    """
    from labsupport import doctor

    findings = doctor.examine()
    typer.echo(json.dumps(doctor.as_dict(findings), indent=2) if as_json else doctor.report(findings))
    raise typer.Exit(0 if doctor.verdict(findings)[0] else 1)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="tiny, smollm2-135m, or a folder with a Hugging Face Llama.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
    method: Annotated[Method, typer.Option(help="The algorithm.")] = Method.gptq,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Bits per weight.")] = 4,
    group_size: Annotated[int, typer.Option(min=1, help="Weights that share a scale.")] = 64,
    calibration: Annotated[
        Path | None, typer.Option(help="A UTF-8 text file; default: the course's calibration text.")
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Calibration sequences.")] = 16,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens per calibration sequence.")] = 512,
    evaluate: Annotated[bool, typer.Option(help="Measure the perplexity before and after.")] = False,
) -> None:
    """Compress a model and write its integers and scales as safetensors, with a JSON report."""
    with errors_as_one_line():
        if out.exists():
            raise ValueError(f"--out must be a folder that does not exist yet; {out} exists")
        from labsupport.lm import ModelNotAvailable, corpus, load_lm
        from labsupport.quantization import quantize_model

        text = corpus("calibration") if calibration is None else calibration.read_text(encoding="utf-8")
        try:
            lm = load_lm(model)
        except ModelNotAvailable as error:
            raise ValueError(str(error)) from error
        typer.echo(str(lm))
        windows = _windows(lm, text, sequences, seq_len)
        small = quantize_model(lm.model, windows, method=method.value, bits=bits, group_size=group_size)
        report: Any = small.quantization_report
        record: dict[str, Any] = {"labsupport": __version__, "model": lm.name, "source": lm.source}
        record |= {"method": method.value, "bits": report.bits, "group_size": group_size}
        record |= {"calibration": {"sequences": len(windows), "seq_len": seq_len}}
        record |= {"report": {"bits_per_weight": report.bits_per_weight, **asdict(report)}}
        if evaluate:
            record["perplexity"] = _perplexities(lm, small, seq_len)
        save_compressed(small, record, out)
        typer.echo(str(report))
        if evaluate:
            typer.echo("perplexity {before:.3f} -> {after:.3f}".format(**record["perplexity"]))
        typer.echo(f"written to {out}")


@app.command()
def train(
    out: Annotated[Path | None, typer.Option(help="Folder for the weights; default: the package's own.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train the `tiny` model on text that ships with Python. It can be interrupted: the next run resumes."""
    with errors_as_one_line():
        from labsupport.lm.load import TINY_FOLDER
        from labsupport.lm.train import train as train_tiny

        typer.echo(json.dumps(train_tiny(out or TINY_FOLDER, steps=steps, seed=seed), indent=2))


@app.command()
def release(
    course_dir: Annotated[Path, typer.Option(help="The folder that holds solutions/ and exercises/.")] = Path(),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if an exercise is out of date.")] = False,
) -> None:
    """Generate the exercises from the solutions."""
    with errors_as_one_line():
        from labsupport.grading.release import release as release_exercises

        outcome = release_exercises(course_dir, check=check)
        typer.echo(str(outcome))
        raise typer.Exit(1 if check and not outcome.in_step else 0)


def save_compressed(model: nn.Module, record: dict[str, Any], folder: Path) -> None:
    """Write ``model.safetensors`` and ``compression.json``; the folder appears complete or not at all."""
    from safetensors.torch import save_file

    with replacing_folder(folder) as temporary:
        save_file(_without_ties(model.state_dict()), temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "compression.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _without_ties(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One name per tensor: safetensors refuses tensors that share memory, as a tied embedding and head do."""
    kept: dict[int, str] = {}
    for name, tensor in state.items():
        if tensor.numel():
            kept.setdefault(tensor.data_ptr(), name)
    return {name: tensor.contiguous() for name, tensor in state.items() if kept.get(tensor.data_ptr(), name) == name}


def _windows(lm: LanguageModel, text: str, sequences: int, seq_len: int) -> list[Tensor]:
    import torch

    tokens = torch.tensor(lm.tokenizer.encode(text), dtype=torch.int64)
    if len(tokens) < seq_len:
        raise ValueError(f"--calibration must hold at least --seq-len = {seq_len} tokens, it holds {len(tokens)}")
    return [window for window in tokens.split(seq_len)[:sequences] if len(window) == seq_len]


def _perplexities(lm: LanguageModel, small: nn.Module, seq_len: int, windows: int = 8) -> dict[str, float]:
    import torch

    from labsupport.lm import corpus, perplexity

    tokens = torch.tensor(lm.tokenizer.encode(corpus("evaluation")), dtype=torch.int64)[: windows * seq_len]
    return {"before": perplexity(lm.model, tokens, seq_len), "after": perplexity(small, tokens, seq_len)}


grading_commands.register(app)
serving_commands.register(app)

if __name__ == "__main__":
    main()
