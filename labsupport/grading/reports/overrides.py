"""Scores set by hand: ``GRADES/overrides.csv``, with the columns student, exercise, score, reason.

The file is the instructor's: grading reads it and never writes it. A score in it stays valid however often a class is
graded again, and every report says that it was set by hand, what the checks gave, and why.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from labsupport.grading.reports.csv_safe import points, unguard, write_csv
from labsupport.grading.reports.results import Row, one_line

FILE = "overrides.csv"
HEADER = ["student", "exercise", "score", "reason"]


@dataclass(frozen=True)
class Override:
    student: str
    exercise: str
    score: float
    reason: str


def read_overrides(path: Path) -> dict[tuple[str, str], Override]:
    """The overrides in ``path``, by student and exercise; none if the file does not exist.

    Raises:
        ValueError: a line is not a student, an exercise, a score of at least 0 and a reason, or repeats an earlier one.
    """
    if not path.exists():
        return {}
    found: dict[tuple[str, str], Override] = {}
    lines = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
    for number, cells in enumerate(lines, start=1):
        if number == 1 and [cell.strip().lower() for cell in cells] != HEADER:
            raise ValueError(f"{path}: the first line must be {','.join(HEADER)}, got {','.join(cells)}")
        if number == 1 or not any(cells):
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(HEADER):
            raise ValueError(f"{where}: must have {len(HEADER)} columns, got {len(cells)} (a reason with a comma needs "
                             "quotes)")  # fmt: skip
        student, exercise, score, reason = (unguard(cell.strip()) for cell in cells)
        override = Override(student, exercise, _score(score, where), one_line(reason))
        if not student or not exercise or not override.reason:
            raise ValueError(f"{where}: student, exercise and reason must not be empty")
        if (student, exercise) in found:
            raise ValueError(f"{where}: {student} and {exercise} are in an earlier line too")
        found[student, exercise] = override
    return found


def apply_overrides(rows: Iterable[Row], overrides: dict[tuple[str, str], Override]) -> list[Row]:
    """``rows`` with the scores set by hand, and rows for submissions that exist only on paper."""
    rows = list(rows)
    applied = [
        _overridden(row, overrides[row.student, row.exercise]) if (row.student, row.exercise) in overrides else row
        for row in rows
    ]
    graded = {(row.student, row.exercise) for row in rows}
    max_scores = {row.exercise: row.max_score for row in rows}
    for key, override in overrides.items():
        if key not in graded:
            most = max_scores.get(override.exercise, override.score)
            blank = Row(override.student, override.exercise, 0.0, most, "not attempted", "nothing was handed in")
            applied.append(_overridden(blank, override))
    return sorted(applied, key=lambda row: (row.student, row.exercise))


def is_overridden(row: Row) -> bool:
    return row.message.startswith(_MARK)


def add_override(path: Path, override: Override) -> None:
    """Add an override, or replace that of the same student and exercise; the rest of the file stays."""
    _score(str(override.score), "score")
    if not override.reason.strip():
        raise ValueError("reason must not be empty: every report shows it")
    overrides = {**read_overrides(path), (override.student, override.exercise): override}
    write_csv(path, HEADER, ([o.student, o.exercise, points(o.score), one_line(o.reason)] for o in overrides.values()))


_MARK = "score set by the instructor"


def _overridden(row: Row, override: Override) -> Row:
    message = f"{_MARK} (the checks gave {points(row.score)}): {override.reason}"
    return replace(row, score=override.score, message=message)


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not (math.isfinite(score) and score >= 0):
        raise ValueError(f"{where}: score must be a number of at least 0, got {text!r}")
    return score
