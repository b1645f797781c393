"""The commands of grading, of instructors and of students. Torch and the graders are imported inside of them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from labsupport.grading.reports.results import Row


def register(app: typer.Typer) -> None:
    """Add all commands of grading to ``app``."""
    for command in (grade, collect, check, progress, override, export):
        app.command()(command)


def grade(
    submissions: Annotated[Path, typer.Argument(help="Holds <student>/<exercise>.ipynb.")],
    out: Annotated[Path, typer.Option(help="The folder for grades and feedback; may hold earlier ones.")],
    workers: Annotated[int, typer.Option(min=1, help="Submissions graded at the same time.")] = 1,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Send the work to this Dask scheduler.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the checks' inputs; default: the one kept in OUT.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of processor time per submission.")] = 60.0,
    course: Annotated[Path | None, typer.Option(help="The folder that holds exercises/; default: this one.")] = None,
    unsafe_no_sandbox: Annotated[
        bool, typer.Option("--unsafe-no-sandbox", help="Grade even where submissions cannot be isolated.")
    ] = False,
) -> None:
    """Grade a class: scores, feedback pages and files for the LMS, whatever the notebooks contain.

    Run it again at any time: only what has changed is graded again. Exits with 1 if the grader itself failed on any.
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
    typer.echo(f"{len(rows)} submissions: {counts or 'none'}. Isolation: {', '.join(levels) or 'no code ran'}")
    if "none" in levels:
        typer.echo("warning: without isolation, submissions could read and change your files", err=True)
    typer.echo(f"written to {out / 'grades.csv'}")
    raise typer.Exit(1 if any(row.status == "error" for row in rows) else 0)


def collect(
    sources: Annotated[list[Path], typer.Argument(help="Folders and zips, in any layout of docs/instructors.md.")],
    out: Annotated[Path, typer.Option(help="The folder to copy to, <student>/<exercise>.ipynb.")],
    roster: Annotated[
        Path | None, typer.Option(help="CSV of the class: your own, or an export of Canvas or Moodle.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="ISO 8601, such as 2026-03-01T23:59; local time unless it has a zone.")
    ] = None,
    exercise: Annotated[
        str | None, typer.Option(help="Take all files for this exercise, whatever they are called.")
    ] = None,
) -> None:
    """Gather what was handed in. Exits with 1 if a file was left out that somebody should look at."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.checks import exercises
        from labsupport.grading.intake.collect import collect as collect_submissions
        from labsupport.grading.intake.roster import read_roster

        if exercise is not None and exercise not in exercises():
            raise ValueError(f"--exercise must be one of {', '.join(exercises())}, got {exercise!r}")
        collection = collect_submissions(
            sources, out, exercises(), read_roster(roster) if roster else None, _moment(deadline), exercise
        )
        typer.echo(str(collection))
        raise typer.Exit(0 if collection.complete else 1)


def check(
    notebook: Annotated[Path, typer.Argument(help="Your saved notebook, such as exercises/ex04_gptq.ipynb.")],
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of processor time that the notebook may take.")] = 60.0,
    again: Annotated[bool, typer.Option("--again", help="Run it even if its answers have not changed.")] = False,
) -> None:
    """Print exactly what grading with the public seed says of a notebook. Exits with 0 if all checks hold.

    A notebook whose answers have not changed since the last time is not run again.
    """
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.grading.own_report import show
        from labsupport.grading.own_work import check_own

        row = check_own(notebook, timeout, _own_results(notebook.parent), again, _say)
        typer.echo(show(row))
        raise typer.Exit(0 if row.status == "ok" else 1)


def progress(
    folder: Annotated[Path, typer.Argument(help="The folder with your notebooks.")] = Path("exercises"),
) -> None:
    """Show the points so far, and the predictions made in the chapters.

    Notebooks whose answers have not changed since the last time are not run again.
    """
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        if not folder.is_dir():
            raise ValueError(f"FOLDER must be the folder with your notebooks, got {folder}")
        from labsupport.grading.own_report import show_predictions, show_progress
        from labsupport.grading.own_work import points_of_exercises
        from labsupport.grading.own_work import progress as progress_of

        cache = _own_results(folder)
        typer.echo(show_progress(progress_of(folder, cache, _say), points_of_exercises(cache)))
        if predictions := show_predictions([folder, folder.resolve().parent / "notebooks"]):
            typer.echo(f"\n{predictions}")


def _own_results(folder: Path) -> Path:
    """Where the rows of a student's own folder are kept."""
    from labsupport.files import cache_root
    from labsupport.grading.reports.results import file_name

    return cache_root() / "progress" / file_name(str(folder.resolve()))


def _say(line: str) -> None:
    """What is being done, while it is done; on standard error, so that the report stays alone on standard output."""
    typer.echo(line, err=True)


def override(
    grades: Annotated[Path, typer.Argument(help="The folder that `labsupport grade` wrote.")],
    student: Annotated[str, typer.Argument()],
    exercise: Annotated[str, typer.Argument(help="Such as ex04_gptq.")],
    score: Annotated[float, typer.Argument(min=0)],
    reason: Annotated[str, typer.Option(help="Shown in every report, also to the student.")],
) -> None:
    """Set a score by hand. Grading again keeps it; to undo it, delete its line in GRADES/overrides.csv."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.checks import exercises
        from labsupport.grading.reports.overrides import FILE, Override, add_override

        if exercise not in exercises():
            raise ValueError(f"exercise must be one of {', '.join(exercises())}, got {exercise!r}")
        if not (grades / "grades.csv").is_file():
            raise ValueError(f"GRADES must be a folder that `labsupport grade` wrote, {grades} has no grades.csv")
        add_override(grades / FILE, Override(student, exercise, score, reason))
        rows = _write_reports(grades)
        if student not in {row.student for row in rows}:
            typer.echo(f"note: {student} has not handed in anything; the score counts all the same")
        typer.echo(f"{student} has {score:g} points for {exercise}")


def export(
    grades: Annotated[Path, typer.Argument(help="The folder that `labsupport grade` wrote.")],
    roster: Annotated[
        Path | None, typer.Option(help="CSV of the class; default: GRADES/roster.csv, if it exists.")
    ] = None,
) -> None:
    """Rewrite all reports from the results: after editing overrides.csv, or with a roster for the LMS."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        _write_reports(grades, roster)
        typer.echo(f"written: grades.csv, class_report.html, canvas.csv, moodle.csv and feedback/ in {grades}")


def _write_reports(grades: Path, roster: Path | None = None) -> list[Row]:
    """All reports again, of the rows that the last grading reported; results/ may hold older ones as well."""
    from labsupport.grading.grade import read_exercises
    from labsupport.grading.intake.notebook import read_submission
    from labsupport.grading.intake.roster import read_roster
    from labsupport.grading.reports.results import Results
    from labsupport.grading.reports.write import read_keys, write_reports

    reported = read_keys(grades)
    rows = [row for row in Results(grades) if (row.student, row.exercise) in reported]
    if not rows:
        raise ValueError(f"GRADES must be a folder that `labsupport grade` wrote, {grades} has no results")
    try:
        handed_out = read_exercises()
    except ValueError:  # not in the course's folder: similarity then compares the stubs' lines as well
        handed_out = {}
    stubs = {name: "\n\n".join(read_submission(data, data).answers.values()) for name, data in handed_out.items()}
    write_reports(grades, rows, read_roster(roster) if roster else None, stubs)
    return rows


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"--deadline must be a time like 2026-03-01T23:59 or 2026-03-01T23:59+01:00, got {text!r}"
        ) from None
