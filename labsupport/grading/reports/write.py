"""Write all reports of a graded class.

    GRADES/grades.csv            one row per student and exercise
    GRADES/feedback/alice.html   for the student
    GRADES/class_report.html     for the instructor
    GRADES/canvas.csv            to import into Canvas and Moodle
    GRADES/moodle.csv

``GRADES/overrides.csv`` and ``GRADES/roster.csv`` are read if they exist, and never written. Each file is replaced in
one step, and the reports can be rewritten at any time without grading anything (`labsupport export`).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from labsupport.files import write_atomically
from labsupport.grading.intake.roster import Roster, read_roster
from labsupport.grading.reports.canvas import UnclearColumn, read_chosen, write_canvas
from labsupport.grading.reports.class_report import class_page
from labsupport.grading.reports.csv_safe import points, unguard, write_csv
from labsupport.grading.reports.feedback import feedback_page
from labsupport.grading.reports.moodle import write_moodle
from labsupport.grading.reports.overrides import FILE as OVERRIDES
from labsupport.grading.reports.overrides import apply_overrides, read_overrides
from labsupport.grading.reports.results import Row, file_name

HEADER = ["student", "exercise", "score", "max_score", "status", "message"]
ROSTER = "roster.csv"


def write_reports(
    out: Path, rows: Sequence[Row], roster: Roster | None = None, stubs: dict[str, str] | None = None
) -> list[str]:
    """Write every report of ``rows`` into ``out``. Returns notes on what the LMS's files leave out, and why.

    Args:
        roster: who is in the class, for the LMS's files; default: ``out/roster.csv``, if it exists.
        stubs: exercise -> source of its answer cells as handed out, which similarity leaves out.

    Raises:
        ValueError: overrides.csv or roster.csv cannot be read; nothing is written then.
        UnclearColumn: Canvas's column of an exercise is not clear; all but canvas.csv is written, which is removed.
    """
    out = Path(out)
    rows = apply_overrides(rows, read_overrides(out / OVERRIDES))
    if roster is None and (out / ROSTER).exists():
        roster = read_roster(out / ROSTER)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "grades.csv", HEADER, (
        [row.student, row.exercise, points(row.score), points(row.max_score), row.status, row.message] for row in rows
    ))  # fmt: skip
    by_student: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_student[row.student].append(row)
    for student, theirs in by_student.items():
        write_atomically(out / "feedback" / f"{file_name(student)}.html", feedback_page(student, theirs))
    write_atomically(out / "class_report.html", class_page(rows, stubs))
    notes = write_moodle(out / "moodle.csv", rows, roster)
    try:
        return write_canvas(out / "canvas.csv", rows, roster, read_chosen(out)) + notes
    except UnclearColumn:
        (out / "canvas.csv").unlink(missing_ok=True)  # an older one would be taken for the new one
        raise


def read_keys(out: Path) -> set[tuple[str, str]]:
    """(student, exercise) of every line of ``out/grades.csv``; empty if the file does not exist."""
    try:
        lines = (out / "grades.csv").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    return {(unguard(row["student"]), row["exercise"]) for row in csv.DictReader(lines)}
