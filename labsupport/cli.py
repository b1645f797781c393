"""The command `labsupport`. Torch and the algorithms are imported inside the commands, so that `--help` is fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from labsupport import __version__
from labsupport.checkpoints import commands as checkpoints_commands
from labsupport.console import errors_as_one_line
from labsupport.grading import commands as grading_commands
from labsupport.serving import commands as serving_commands

app = typer.Typer(
    help="Make large language models smaller and faster: the commands of the course.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


checkpoints_commands.register(app)
grading_commands.register(app)
serving_commands.register(app)

if __name__ == "__main__":
    main()
