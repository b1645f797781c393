"""What the files for Canvas and Moodle have in common: who is in them, and with which scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from labsupport.grading.intake.identify import agrees
from labsupport.grading.intake.roster import Roster, Student
from labsupport.grading.reports.csv_safe import points
from labsupport.grading.reports.results import Row


@dataclass(frozen=True)
class Scores:
    """The table of a class. With a roster it holds the roster's people only, and `notes` name the others."""

    exercises: list[str]
    people: list[Student]
    rows: dict[tuple[str, str], Row]  # by student and exercise, without those that the grader failed on
    notes: list[str]

    def score(self, student: Student, exercise: str) -> int | float | str:
        """Empty if there is none."""
        row = self.rows.get((student.id, exercise))
        return points(row.score) if row is not None else ""


def scores_of(rows: Sequence[Row], roster: Roster | None) -> Scores:
    notes = [f"{row.student}: {row.exercise} could not be graded, no score" for row in rows if row.status == "error"]
    students = sorted({row.student for row in rows})
    people, ids = [Student(student) for student in students], {student: student for student in students}
    if roster is not None:
        people = list(roster.students)
        ids = _ids(students, roster)
        if by_name := [student for student in students if ids.get(student, student) != student]:
            such = f"such as {by_name[0]} ({ids[by_name[0]]})"
            notes.append(f"{len(by_name)} students are found on the roster by their names, {such}")
        notes += [f"{student} is not on the roster" for student in students if student not in ids]
    good = {(ids[row.student], row.exercise): row for row in rows if row.status != "error" and row.student in ids}
    return Scores(sorted({row.exercise for row in rows}), people, good, notes)


def _ids(students: Sequence[str], roster: Roster) -> dict[str, str]:
    """Student of a row -> id on the roster, for submissions that were collected without it too.

    Such a student has the name that the LMS gave to the file, with its number: "doejane_12", "Ann Lee_7".
    """
    listed = {student.id for student in roster.students}
    ids = {student: student for student in students if student in listed}
    meant = {student: found for student in students if student not in ids and (found := _meant(student, roster))}
    counts = Counter([*ids.values(), *meant.values()])
    return ids | {student: found for student, found in meant.items() if counts[found] == 1}


def _meant(student: str, roster: Roster) -> str:
    """The id of the only person on the roster who may be meant; else empty."""
    name, _, number = student.rpartition("_")
    numbered = [p for p in roster.students if number.isdecimal() and number in (p.canvas_id, p.moodle_id)]
    if len(numbered) == 1 and agrees(numbered[0], name):
        return numbered[0].id
    try:
        found = roster.find([student])
    except ValueError:
        return ""
    return found.id if found is not None else ""
