"""The commands `labsupport collect`, `check`, `progress`, `override` and `export`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from labsupport.grading.reports.results import Row


def register(app: typer.Typer) -> None:
    """Add the commands to `labsupport`."""
    for command in (collect, check, progress, override, export):
        app.command()(command)


def collect(
    sources: Annotated[list[Path], typer.Argument(help="Folders and zips: any layout, see docs/instructors.md.")],
    out: Annotated[Path, typer.Option(help="The folder of submissions, <student>/<exercise>.ipynb.")],
    roster: Annotated[Path | None, typer.Option(help="CSV of the class: one's own, Canvas's or Moodle's.")] = None,
    deadline: Annotated[
        str | None, typer.Option(help="ISO 8601, such as 2026-03-01T23:59; local without a zone.")
    ] = None,
    exercise: Annotated[
        str | None, typer.Option(help="All files are for this exercise, whatever they are called.")
    ] = None,
) -> None:
    """Gather what was handed in. Ends with 1 if something was left out that somebody should look at."""
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
    notebook: Annotated[Path, typer.Argument(help="Your notebook, such as exercises/ex04_gptq.ipynb (saved).")],
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that the notebook may take.")] = 60.0,
) -> None:
    """Say exactly what grading would say of a notebook, with the public seed. Ends with 0 if all checks hold."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        from labsupport.grading.own_work import check_own

        row = check_own(notebook, timeout)
        typer.echo(show(row))
        raise typer.Exit(0 if row.status == "ok" else 1)


def progress(
    folder: Annotated[Path, typer.Argument(help="The folder with your notebooks.")] = Path("exercises"),
) -> None:
    """Show the points so far. Notebooks that did not change since last time are not run again."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        if not folder.is_dir():
            raise ValueError(f"FOLDER must be the folder with your notebooks, got {folder}")
        from labsupport.grading.own_work import progress as progress_of
        from labsupport.grading.reports.results import file_name
        from labsupport.lm.download import cache_root

        cache = cache_root() / "progress" / file_name(str(folder.resolve()))
        typer.echo(show_progress(progress_of(folder, cache)))


def override(
    grades: Annotated[Path, typer.Argument(help="The folder that `labsupport grade` wrote.")],
    student: Annotated[str, typer.Argument()],
    exercise: Annotated[str, typer.Argument(help="Such as ex04_gptq.")],
    score: Annotated[float, typer.Argument(min=0)],
    reason: Annotated[str, typer.Option(help="Shown in every report, to the student too.")],
) -> None:
    """Set a score by hand. Grading again keeps it; delete its line in GRADES/overrides.csv to take it back."""
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
            typer.echo(f"note: {student} has handed in nothing; the score counts all the same")
        typer.echo(f"{student} has {score:g} points for {exercise}")


def export(
    grades: Annotated[Path, typer.Argument(help="The folder that `labsupport grade` wrote.")],
    roster: Annotated[
        Path | None, typer.Option(help="CSV of the class; else GRADES/roster.csv if there is one.")
    ] = None,
) -> None:
    """Write all reports anew from what was graded: after editing overrides.csv, or with a roster for the LMS."""
    from labsupport.console import errors_as_one_line

    with errors_as_one_line():
        _write_reports(grades, roster)
        typer.echo(f"written: grades.csv, class_report.html, canvas.csv, moodle.csv and feedback/ in {grades}")


def show(row: Row) -> str:
    """What `check` prints: the verdict of every check, word for word as in the feedback of a grading."""
    from labsupport.grading.reports.csv_safe import points

    lines = [f"{row.exercise}: {points(row.score)} of {points(row.max_score)} points, {row.status}"]
    lines += [f"  {check.message}" for check in row.checks] or [f"  {row.message}"]
    lines += [f"  note: {note}" for note in row.notes]
    lines.append(f"  (public seed; sandbox: {row.isolation or 'no code ran'})")
    return "\n".join(lines)


def show_progress(table: list[tuple[str, Row | None]]) -> str:
    """What `progress` prints."""
    from labsupport.checks import exercise
    from labsupport.grading.reports.csv_safe import points

    lines = [f"{'exercise':<28}{'points':>9}  state"]
    for name, row in table:
        score = points(row.score) if row is not None else 0
        state = "no notebook" if row is None else row.status if row.status in ("ok", "not attempted") else row.message
        lines.append(f"{name:<28}{f'{score} / {exercise(name).points}':>9}  {state}")
    total = points(sum(row.score for _, row in table if row is not None))
    lines.append(f"{'all':<28}{f'{total} / {sum(exercise(name).points for name, _ in table)}':>9}")
    return "\n".join(lines)


def _write_reports(grades: Path, roster: Path | None = None) -> list[Row]:
    """All reports again, of the rows that the last grading reported (older ones may lie beside them)."""
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
    except ValueError:  # not in the course's folder: similarity then counts the stubs' lines too
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
