"""Grades as the file that Canvas imports.

Canvas reads what it exports (lib/gradebook_importer.rb of instructure/canvas-lms): the columns Student, ID, SIS User
ID, SIS Login ID, Section, then one per assignment, and a second row "Points Possible". It finds a person by ID, else by
SIS User ID, SIS Login ID or name, and an assignment by the number at the end of "Title (123)", else by its title; else
it makes a new one. A cell that is empty deletes the score that Canvas has, and a number in the second row changes the
assignment. So, with Canvas's own export as the roster, columns are those of the export, and whatever is not a new score
stays as it was there.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from labsupport.grading.intake.roster import Roster, Student
from labsupport.grading.reports.csv_safe import points, unguard, write_csv
from labsupport.grading.reports.lms import Scores, scores_of
from labsupport.grading.reports.results import Row

IDENTITY = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
CHOSEN = "canvas_columns.csv"  # exercise,column: what `--column` said
_NO_ASSIGNMENT = re.compile(
    r"(Unposted )?(Current|Final|Override) (Score|Points|Grade|Status)|^(Student|LastName|FirstName|ID|SIS User ID"
    r"|SIS Login ID|Section|Integration ID|Root Account)$"
)


class UnclearColumn(ValueError):
    """Canvas would make a new assignment; the message lists the columns that may be meant."""


def write_canvas(
    path: Path, rows: Sequence[Row], roster: Roster | None = None, chosen: Mapping[str, str] | None = None
) -> list[str]:
    """One row per student, one column per exercise. Returns notes on what was left out, and why.

    Args:
        chosen: exercise -> its column in Canvas's export; empty to leave the exercise out.

    Raises:
        UnclearColumn: the roster is Canvas's, and it does not tell which column an exercise has. Nothing is written.
    """
    table = scores_of(rows, roster)
    columns = columns_for(table.exercises, roster, chosen or {})
    notes = [f"canvas.csv: {note}" for note in table.notes]
    most = {row.exercise: row.max_score for row in rows}
    second: list[object] = ["    Points Possible", *[""] * 4]
    for exercise, column in columns.items():
        there = _points_possible(roster, column)
        second.append(points(most[exercise]) if there is None else there)
        if there is not None and _number(there) not in (None, most[exercise]):
            notes.append(
                f"canvas.csv: {column} has {there} points in Canvas, the scores are of {points(most[exercise])}"
            )
    lines = [second]
    for person in table.people:
        cells = [_cell(table, person, exercise, column, roster, notes) for exercise, column in columns.items()]
        login = person.login or (person.id if not person.canvas_id else "")  # an invented one may be somebody's
        names = (person.name or person.id, person.canvas_id, person.sis_id, login, person.section)
        lines.append([*names, *cells])
    kept = roster if roster is not None and roster.is_canvas else Roster([])
    for line in kept.others:
        if "Points Possible" not in line[0] and line[0].strip():  # the Test Student, as it was
            lines.append([*_identity(kept, line), *(_kept(kept, line, column) for column in columns.values())])
    write_csv(path, [*IDENTITY, *columns.values()], lines)
    return notes


def columns_for(exercises: Sequence[str], roster: Roster | None, chosen: Mapping[str, str]) -> dict[str, str]:
    """Exercise -> column of the file, in order; without the exercises that are left out.

    Raises:
        UnclearColumn: see `write_canvas`.
    """
    if roster is None or not roster.is_canvas:
        return {exercise: chosen.get(exercise, exercise) for exercise in exercises if chosen.get(exercise, exercise)}
    assignments = [c for c in roster.columns if c.strip() and not _NO_ASSIGNMENT.search(c.strip())]
    assignments = [c for c in assignments if "read only" not in (_points_possible(roster, c) or "").lower()]
    numbered = [c for c in assignments if re.search(r" \(\d+\)$", c)]  # the others are the teacher's own: notes
    assignments = numbered or assignments
    columns = {}
    for exercise in exercises:
        if exercise in chosen:
            found = [c for c in assignments if chosen[exercise] in _spellings(c)]
            if not chosen[exercise]:
                continue
        else:
            found = _named(exercise, assignments)
        if len(found) != 1:
            listed = "; ".join(found or assignments) or "none"
            problem = "several columns" if found else "no column"
            raise UnclearColumn(
                f"canvas.csv: {problem} for {exercise} in Canvas's export, which has: {listed}. Say --column "
                f'"{exercise}=TITLE (NUMBER)", or --column "{exercise}=" to leave it out'
            )
        columns[exercise] = found[0]
    if len(set(columns.values())) < len(columns):
        raise UnclearColumn(f"canvas.csv: two exercises have one column: {columns}")
    return columns


def read_chosen(grades: Path) -> dict[str, str]:
    """What earlier calls said with `--column`."""
    path = grades / CHOSEN
    if not path.exists():
        return {}
    rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    return {unguard(row[0]): unguard(row[1]) for row in list(rows)[1:] if len(row) == 2}


def write_chosen(grades: Path, chosen: Mapping[str, str]) -> None:
    write_csv(grades / CHOSEN, ["exercise", "column"], [list(pair) for pair in chosen.items()])


def _spellings(column: str) -> set[str]:
    """ "Homework 1 (4711)": itself, its title, its number."""
    found = re.fullmatch(r"(.*) \((\d+)\)", column, re.DOTALL)
    return {column, found[1], found[2]} if found else {column}


def _named(exercise: str, assignments: Sequence[str]) -> list[str]:
    """Columns with the whole name, else with "ex01"."""
    for words in (exercise, exercise.partition("_")[0]):
        pattern = re.compile(rf"(?i)(?<![a-z0-9]){re.escape(words)}(?![a-z0-9])")
        if found := [column for column in assignments if pattern.search(column)]:
            return found
    return []


def _cell(
    table: Scores, person: Student, exercise: str, column: str, roster: Roster | None, notes: list[str]
) -> int | float | str:
    there = _kept(roster, person.cells, column) if roster is not None and roster.is_canvas else ""
    score = table.score(person, exercise)
    if score != "" and str(there).upper() == "EX":
        notes.append(f"canvas.csv: {person.id} is excused from {exercise} in Canvas, which stays; the score is {score}")
        return there
    return there if score == "" else score


def _kept(roster: Roster, line: Sequence[str], column: str) -> int | float | str:
    """A cell of the export, as it was."""
    i = roster.columns.index(column)
    cell = line[i].strip() if i < len(line) else ""
    number = _number(cell)
    return "" if cell in ("-", "N/A") else cell if number is None or number >= 0 else number


def _identity(roster: Roster, line: Sequence[str]) -> list[str]:
    places = [roster.columns.index(name) if name in roster.columns else -1 for name in IDENTITY]
    return [line[i] if 0 <= i < len(line) else "" for i in places]


def _points_possible(roster: Roster | None, column: str) -> str | None:
    """What the export says below an assignment; None where there is no such row."""
    if roster is None or not roster.is_canvas or column not in roster.columns:
        return None
    i = roster.columns.index(column)
    return next((line[i].strip() for line in roster.others if "Points Possible" in line[0] and len(line) > i), None)


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None
