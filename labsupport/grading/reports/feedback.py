"""The page that one student gets: what was asked, what holds, what does not and why.

It is made of what the student may see: the checks' public descriptions, their messages, the student's own answer. The
seed, its fingerprint, other students and reference answers are not among it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from labsupport.grading.reports.csv_safe import points
from labsupport.grading.reports.html_page import Html, page, table, tag
from labsupport.grading.reports.overrides import is_overridden
from labsupport.grading.reports.results import CheckResult, Row

MEANING = {
    "ok": "all checks hold",
    "failed": "at least one check does not hold",
    "not attempted": "the answer cells are as they were handed out",
    "timeout": "the code ran for longer than it was given; a loop may have no end",
    "memory": "the code asked for more memory than it was given",
    "exited": "the code ended its process before the checks were through",
    "output limit": "the code printed more than can be kept",
    "invalid notebook": "the file is no notebook that can be read",
    "error": "grading itself failed: this is not your fault, tell your instructor",
}


def feedback_page(student: str, rows: Sequence[Row]) -> str:
    """The whole HTML document for one student's ``rows``."""
    total, most = sum(row.score for row in rows), sum(row.max_score for row in rows)
    summary = table(
        ("exercise", "points", "result"),
        [(row.exercise, _of(row.score, row.max_score), tag("span", row.status, class_=_class(row))) for row in rows],
    )
    return page(
        f"Feedback for {student}",
        tag("p", f"{_of(total, most)} points in {len(rows)} exercise{'s' if len(rows) != 1 else ''}."),
        summary,
        *(_section(row) for row in rows),
        tag("p", "The same checks run in your notebook: mend the answer, run the check cell below it, and read its "
                 "line. The numbers that a check draws are others here, what it asks is the same.", class_="quiet"),
    )  # fmt: skip


def text_of(check: CheckResult) -> str:
    """A check's message without the name and points in front, which stand beside it."""
    return re.sub(rf"^[✓✗] ?{re.escape(check.name)}(?: \([^)]*\))?: ", "", check.message)


def _section(row: Row) -> Html:
    parts: list[Html] = [
        tag("h2", f"{row.exercise}: {_of(row.score, row.max_score)} points"),
        tag("p", tag("span", row.status, class_=_class(row)), f": {MEANING[row.status]}."),
    ]
    if is_overridden(row) or not row.checks:
        parts.append(tag("p", row.message))
    if row.checks:
        asked = _asked(row.exercise)
        parts.append(table(("check", "points", "what it asks", "what was found"), [
            (check.name, _of(check.points, check.max_points), asked.get(check.name, ""), _finding(check))
            for check in row.checks
        ]))  # fmt: skip
    if row.notes:
        parts.append(tag("ul", *(tag("li", note) for note in row.notes)))
    for cell, source in row.answers.items():
        parts.append(tag("details", tag("summary", f"Your answer in cell {cell}"), tag("pre", source)))
    return tag("section", *parts)


def _finding(check: CheckResult) -> Html:
    if check.passed:
        return tag("span", "✓ holds", class_="passed")
    return tag("span", f"✗ {text_of(check)}", class_="failed")


def _asked(exercise_name: str) -> dict[str, str]:
    """What each check states of a right answer; the public text that a student reads when it passes."""
    from labsupport.checks import exercise, exercises

    return {c.name: c.holds for c in exercise(exercise_name).checks} if exercise_name in exercises() else {}


def _of(score: float, most: float) -> str:
    return f"{points(score)} of {points(most)}"


def _class(row: Row) -> str:
    return "passed" if row.score >= row.max_score else "failed"
