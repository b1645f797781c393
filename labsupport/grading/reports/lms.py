"""Grades as the files that Canvas and Moodle import.

Canvas reads what it exports (lib/gradebook_importer.rb of instructure/canvas-lms): the columns Student, ID, SIS User
ID, SIS Login ID, Section, then one per assignment, and a second row "Points Possible". It finds a person by ID, else by
SIS User ID, SIS Login ID or name, and an assignment by the number at the end of "Title (123)", else by its title. With
Canvas's own gradebook export as the roster all of these match.

Moodle (Grades, Import, CSV file; https://docs.moodle.org/en/Grade_import) asks what each column means. It finds a
person by email address, ID number or username. Grade and feedback of an activity must be imported together: if one is
left out, Moodle deletes what it had of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labsupport.grading.intake.roster import Roster, Student
from labsupport.grading.reports.csv_safe import points, write_csv
from labsupport.grading.reports.results import Row

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MOODLE = ("Full name", "Username", "ID number", "Email address")


def write_canvas(path: Path, rows: Sequence[Row], roster: Roster | None = None) -> None:
    """One row per student, one column per exercise. The cell of an exercise that was not handed in stays empty."""
    exercises, scores, people = _table(rows, roster)
    most = {row.exercise: row.max_score for row in rows}
    columns = [roster.column_of(exercise) if roster else exercise for exercise in exercises]
    lines: list[list[object]] = [
        ["    Points Possible", *[""] * 4, *(points(most[exercise]) for exercise in exercises)]
    ]
    for person in people:
        cells = [_score(scores.get((person.id, exercise))) for exercise in exercises]
        identity = [
            person.name or person.id,
            person.canvas_id,
            person.sis_id,
            person.login or person.id,
            person.section,
        ]
        lines.append([*identity, *cells])
    write_csv(path, [*CANVAS, *columns], lines)


def write_moodle(path: Path, rows: Sequence[Row], roster: Roster | None = None) -> None:
    """One row per student; for each exercise one column with the grade and one with the feedback."""
    exercises, scores, people = _table(rows, roster)
    header = [column for exercise in exercises for column in (exercise, f"{exercise} (feedback)")]
    lines = []
    for person in people:
        found = [scores.get((person.id, exercise)) for exercise in exercises]
        cells = [cell for row in found for cell in (_score(row), row.message if row else "")]
        lines.append([person.name, person.login or person.id, person.sis_id, person.email, *cells])
    write_csv(path, [*MOODLE, *header], lines)


def _table(
    rows: Sequence[Row], roster: Roster | None
) -> tuple[list[str], dict[tuple[str, str], Row], Sequence[Student]]:
    """Exercises, rows by student and exercise, and people: the roster's, then those who handed in but are not on it."""
    listed = list(roster.students) if roster else []
    unlisted = sorted({row.student for row in rows} - {student.id for student in listed})
    by_key = {(row.student, row.exercise): row for row in rows}
    return sorted({row.exercise for row in rows}), by_key, [*listed, *(Student(student) for student in unlisted)]


def _score(row: Row | None) -> object:
    return points(row.score) if row is not None else ""
