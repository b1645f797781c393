"""The page that one student gets: what was asked, what holds, what does not, and why.

It is made only of what the student may see: the checks' public descriptions, their messages, the student's own answer;
not the seed or its fingerprint, nor other students or reference answers. The layout is ``templates/feedback.html.j2``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from labsupport.grading.reports.csv_safe import points
from labsupport.grading.reports.overrides import is_overridden
from labsupport.grading.reports.render import render
from labsupport.grading.reports.results import CheckResult, Row

MEANING = {
    "ok": "all checks hold",
    "failed": "at least one check does not hold",
    "not attempted": "the answer cells are as they were handed out",
    "timeout": "the code ran out of time; it may contain an endless loop, or wait for something that never comes",
    "memory": "the code used more memory than it is allowed",
    "exited": "the code ended its process before all checks had run",
    "output limit": "the code printed or wrote more than it is allowed",
    "invalid notebook": "the file is not a readable notebook",
    "error": "grading itself failed: this is not your fault, tell your instructor",
}


def feedback_page(student: str, rows: Sequence[Row]) -> str:
    """The whole HTML document for one student's ``rows``."""
    return render(
        "feedback.html.j2",
        title=f"Feedback for {student}",
        score=points(sum(row.score for row in rows)),
        max_score=points(sum(row.max_score for row in rows)),
        sections=[_section(row) for row in rows],
    )


def text_of(check: CheckResult) -> str:
    """A check's message without its leading name and points, which the page shows in columns of their own."""
    return re.sub(rf"^[✓✗] ?{re.escape(check.name)}(?: \([^)]*\))?: ", "", check.message)


def _section(row: Row) -> dict[str, object]:
    asked = _asked(row.exercise)
    return {
        "exercise": row.exercise,
        "points": _of(row.score, row.max_score),
        "passed": row.score >= row.max_score,
        "status": row.status,
        "meaning": MEANING[row.status],
        "message": row.message if is_overridden(row) or not row.checks else None,
        "checks": [
            {
                "name": check.name,
                "points": _of(check.points, check.max_points),
                "asks": asked.get(check.name, ""),
                "passed": check.passed,
                "finding": "✓ holds" if check.passed else f"✗ {text_of(check)}",
            }
            for check in row.checks
        ],
        "notes": row.notes,
        "answers": row.answers,
    }


def _asked(exercise_name: str) -> dict[str, str]:
    """What each check requires of a right answer: the public text that a student reads when it passes."""
    from labsupport.checks import exercise, exercises

    return {c.name: c.holds for c in exercise(exercise_name).checks} if exercise_name in exercises() else {}


def _of(score: float, most: float) -> str:
    return f"{points(score)} of {points(most)}"
