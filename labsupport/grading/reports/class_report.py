"""The page for the instructor: how the class did, which mistakes are common, which answers look alike.

The layout is ``templates/class_report.html.j2``.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from labsupport.grading.reports.csv_safe import points
from labsupport.grading.reports.feedback import text_of
from labsupport.grading.reports.overrides import is_overridden
from labsupport.grading.reports.render import render
from labsupport.grading.reports.results import Row
from labsupport.grading.reports.similarity import Pair, similar_pairs

BINS = 5  # of the distribution of scores, from no points to all of them
_TO_LOOK_AT = ("error", "invalid notebook", "exited", "output limit", "memory", "timeout")


def class_page(rows: Sequence[Row], stubs: Mapping[str, str] | None = None) -> str:
    """The whole HTML document. ``stubs``: exercise -> what its answer cells hold when handed out."""
    by_exercise: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_exercise[row.exercise].append(row)
    return render(
        "class_report.html.j2",
        title="Class report",
        submissions=len(rows),
        students=len({row.student for row in rows}),
        isolation=_counts(row.isolation or "no code ran" for row in rows),
        bins=[f"{100 * i // BINS} to {100 * (i + 1) // BINS} %" for i in range(BINS)],
        exercises=[_exercise(name, theirs) for name, theirs in sorted(by_exercise.items())],
        mistakes=_mistakes(rows),
        to_look_at=_to_look_at(rows),
        pairs=_alike(by_exercise, stubs or {}),
    )


def common_mistakes(rows: Sequence[Row], limit: int = 25) -> list[tuple[str, str, str, list[str]]]:
    """(exercise, check, an example of the message, students) of the messages that most students got.

    Messages that differ only in numbers, or in the line of code that they quote, count as one.
    """
    students: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    example: dict[tuple[str, str, str], str] = {}
    for row in rows:
        for check in row.checks:
            if not check.passed and check.attempted:
                key = row.exercise, check.name, _kind(text_of(check))
                students[key].append(row.student)
                example.setdefault(key, text_of(check))
    ranked = sorted(students.items(), key=lambda item: (-len(item[1]), item[0]))[:limit]
    return [(exercise, check, example[exercise, check, kind], who) for (exercise, check, kind), who in ranked]


def _kind(message: str) -> str:
    without_code = re.sub(r" \(line \d+ of its cell[^)]*\)?", "", message)
    return re.sub(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?", "#", without_code)


def _exercise(name: str, rows: Sequence[Row]) -> dict[str, object]:
    scores, most = [row.score for row in rows], max(row.max_score for row in rows)
    mean = statistics.mean(scores)
    full = sum(row.score >= row.max_score for row in rows) / len(rows)
    bins = Counter(min(int(BINS * row.score / (row.max_score or 1)), BINS - 1) for row in rows)
    passed: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for check in row.checks:
            passed[check.name].append(check.passed)
    return {
        "name": name,
        "submissions": len(rows),
        "mean_share": mean / (most or 1),
        "mean": f"{points(mean)} of {points(most)}",
        "median": points(statistics.median(scores)),
        "full_share": full,
        "full": f"{full:.0%}",
        "statuses": _counts(row.status for row in rows),
        "seconds": f"{statistics.median(row.seconds for row in rows):.1f} s",
        "bins": [bins[i] for i in range(BINS)],
        "checks": [{"name": check, "passed": sum(found), "graded": len(found)} for check, found in passed.items()],
    }


def _mistakes(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [
        {"students": len(who), "exercise": exercise, "check": check, "message": message, "who": _some(who)}
        for exercise, check, message, who in common_mistakes(rows)
    ]


def _to_look_at(rows: Sequence[Row]) -> list[dict[str, object]]:
    found = [row for row in rows if row.status in _TO_LOOK_AT or is_overridden(row) or row.notes]
    found.sort(key=lambda row: (row.status not in _TO_LOOK_AT, row.status, row.student))
    return [
        {
            "student": row.student,
            "exercise": row.exercise,
            "points": f"{points(row.score)} of {points(row.max_score)}",
            "status": row.status,
            "message": row.message,
            "notes": " / ".join(row.notes),
        }
        for row in found
    ]


def _alike(by_exercise: Mapping[str, list[Row]], stubs: Mapping[str, str]) -> list[Pair]:
    pairs: list[Pair] = []
    for exercise, rows in sorted(by_exercise.items()):
        answers = {row.student: "\n\n".join(row.answers.values()) for row in rows if row.answers}
        pairs += similar_pairs(exercise, answers, stubs.get(exercise, ""))
    return pairs


def _some(students: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(students[:limit])
    return shown if len(students) <= limit else f"{shown} and {len(students) - limit} more"


def _counts(values: Iterable[str]) -> str:
    return ", ".join(f"{n} {value}" for value, n in Counter(values).most_common())
