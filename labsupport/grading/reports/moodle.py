"""Grades as the file that Moodle imports (Grades, Import, CSV file; grade/import/csv/classes/load_data.php of Moodle).

The user says what each column means. A row whose person is not found ends the whole import, and a row in which the
identifying cell is empty is, by some versions' code, taken for the person above it. So only people of the roster are in
the file, and only columns in which everybody has a value of their own. An empty grade deletes the one that Moodle has:
people without any grade are left out, and where somebody has grades for some exercises only, there is a file for each
exercise as well. Feedback is shown as HTML, so what looks like markup is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from labsupport.grading.intake.roster import Roster, Student
from labsupport.grading.reports.csv_safe import guard, write_csv
from labsupport.grading.reports.lms import Scores, scores_of
from labsupport.grading.reports.results import Row

FOLDER = "moodle"  # a file for each exercise
_IDENTITY = {"Username": "login", "ID number": "sis_id", "Email address": "email"}


def write_moodle(path: Path, rows: Sequence[Row], roster: Roster | None = None) -> list[str]:
    """One row per student; for each exercise a column with the grade and one with the feedback.

    Returns notes on who was left out, and why.
    """
    table = scores_of(rows, roster)
    people = [p for p in table.people if any((p.id, exercise) in table.rows for exercise in table.exercises)]
    columns, notes = {"Username": "id"}, list(table.notes)
    if roster is not None:
        columns = _identifying(people)
        nameless = [p for p in people if not all(_value(p, field) for field in columns.values()) or not columns]
        notes += [f"{p.id} has no e-mail address, user name or ID number of their own on the roster" for p in nameless]
        people = [p for p in people if p not in nameless]
    _write(path, table, people, columns, table.exercises, roster)
    folder = path.with_name(FOLDER)
    for old in folder.glob("*.csv"):
        old.unlink()
    gaps = [p.id for p in people if any(_grade(table, p, exercise, roster) == "" for exercise in table.exercises)]
    if gaps:
        for exercise in table.exercises:
            theirs = [p for p in people if (p.id, exercise) in table.rows]
            _write(folder / f"{exercise}.csv", table, theirs, columns, [exercise], roster)
        notes.append(f"{len(gaps)} students have grades for some exercises only: an empty cell deletes the grade that "
                     f"Moodle has, so import the files in {FOLDER}/ instead, one for each exercise")  # fmt: skip
    return [f"moodle.csv: {note}" for note in notes]


def _write(
    path: Path,
    table: Scores,
    people: Sequence[Student],
    columns: dict[str, str],
    exercises: Sequence[str],
    roster: Roster | None,
) -> None:
    header = ["Full name", *columns, *(cell for exercise in exercises for cell in (exercise, f"{exercise} (feedback)"))]
    lines = []
    for person in people:
        cells: list[object] = [person.name, *(getattr(person, field) for field in columns.values())]
        for exercise in exercises:
            row = table.rows.get((person.id, exercise))
            feedback = html.escape(row.message, quote=False) if row is not None else ""
            cells += [_grade(table, person, exercise, roster), feedback]
        lines.append(cells)
    write_csv(path, header, lines)


def _identifying(people: Sequence[Student]) -> dict[str, str]:
    """The columns that tell everybody apart; if there is none, the one that most people have."""
    values = {header: [v for p in people if (v := _value(p, field))] for header, field in _IDENTITY.items()}
    distinct = {header: found for header, found in values.items() if found and len(set(found)) == len(found)}
    complete = {header: _IDENTITY[header] for header, found in distinct.items() if len(found) == len(people)}
    if complete or not distinct:
        return complete
    best = max(distinct, key=lambda header: len(distinct[header]))
    return {best: _IDENTITY[best]}


def _value(person: Student, field: str) -> str:
    """What identifies a person; nothing if a spreadsheet would run it, as it is then changed in the file."""
    value = str(getattr(person, field))
    return value if guard(value) == value else ""


def _grade(table: Scores, person: Student, exercise: str, roster: Roster | None) -> int | float | str:
    """The new score, else the one that the roster has, if it is Moodle's export of grades."""
    score = table.score(person, exercise)
    if score != "" or roster is None or roster.is_canvas:
        return score
    short = re.escape(exercise.partition("_")[0])
    found = [i for i, c in enumerate(roster.columns) if re.search(rf"(?i)(?<![a-z0-9]){short}(?![a-z0-9])", c)]
    cell = person.cells[found[0]].strip() if len(found) == 1 and found[0] < len(person.cells) else ""
    return cell.replace(",", ".") if re.fullmatch(r"\d+([.,]\d+)?", cell) else ""
