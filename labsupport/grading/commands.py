"""The command `labsupport grade`, and the others of this package. Torch and the graders are imported inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labsupport.grading import student_commands


def register(app: typer.Typer) -> None:
    """Add all commands of grading to ``app``."""
    app.command()(grade)
    student_commands.register(app)


def grade(
    submissions: Annotated[Path, typer.Argument(help="Holds <student>/<exercise>.ipynb.")],
    out: Annotated[Path, typer.Option(help="The folder for grades.csv, feedback and results. May hold earlier ones.")],
    workers: Annotated[int, typer.Option(min=1, help="Submissions graded at a time.")] = 1,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Send the work to this Dask scheduler.")] = None,
    seed: Annotated[int | None, typer.Option(help="For the checks' inputs; without it the one kept in OUT.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one submission.")] = 60.0,
    course: Annotated[Path | None, typer.Option(help="The folder that holds exercises/, else this one.")] = None,
    unsafe_no_sandbox: Annotated[
        bool, typer.Option("--unsafe-no-sandbox", help="Grade even where submissions cannot be isolated.")
    ] = False,
) -> None:
    """Grade a class: right scores, feedback and CSV, whatever is in the notebooks.

    Run it again at any time: what has not changed is not graded again. Ends with 1 if the grader itself failed on any.
    """
    from collections import Counter

    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.grading.grade import grade as grade_class
        from labsupport.grading.sandbox.warm import SandboxError

        try:
            rows = grade_class(submissions, out, workers, dask, seed, timeout, course, unsafe_no_sandbox)
        except SandboxError as error:
            raise ValueError(str(error)) from error
    counts = ", ".join(f"{count} {status}" for status, count in Counter(row.status for row in rows).most_common())
    levels = sorted({row.isolation for row in rows if row.isolation})
    typer.echo(f"{len(rows)} submissions: {counts or 'none'}. Isolation: {', '.join(levels) or 'nothing was run'}")
    if "none" in levels:
        typer.echo("warning: no isolation, submissions could read and change your files", err=True)
    typer.echo(f"written to {out / 'grades.csv'}")
    raise typer.Exit(1 if any(row.status == "error" for row in rows) else 0)
