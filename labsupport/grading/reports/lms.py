"""What the files for Canvas and Moodle have in common: who is in them, and with which scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    good = {(row.student, row.exercise): row for row in rows if row.status != "error"}
    notes = [f"{row.student}: {row.exercise} could not be graded, no score" for row in rows if row.status == "error"]
    students = sorted({row.student for row in rows})
    people = [Student(student) for student in students]
    if roster is not None:
        people = list(roster.students)
        listed = {student.id for student in people}
        notes += [f"{student} is not on the roster" for student in students if student not in listed]
    return Scores(sorted({row.exercise for row in rows}), people, good, notes)
