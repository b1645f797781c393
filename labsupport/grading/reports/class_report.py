"""The page for the instructor: how the class did, which mistakes are common, which answers look alike."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from labsupport.grading.reports.csv_safe import points
from labsupport.grading.reports.feedback import text_of
from labsupport.grading.reports.html_page import Html, bar, page, table, tag
from labsupport.grading.reports.overrides import is_overridden
from labsupport.grading.reports.results import Row
from labsupport.grading.reports.similarity import Pair, similar_pairs

BINS = 5  # of the distribution of scores, from none to all points
_TO_LOOK_AT = ("error", "invalid notebook", "exited", "output limit", "memory", "timeout")


def class_page(rows: Sequence[Row], stubs: Mapping[str, str] | None = None) -> str:
    """The whole HTML document. ``stubs``: exercise -> what its answer cells hold when handed out."""
    by_exercise: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_exercise[row.exercise].append(row)
    students = {row.student for row in rows}
    parts = [
        tag("p", f"{len(rows)} submissions of {len(students)} students. "
                 f"Isolation: {_counts(row.isolation or 'no code ran' for row in rows)}."),
        tag("h2", "Exercises"), _overview(by_exercise),
        tag("h2", "Distribution of scores"), _distribution(by_exercise),
        tag("h2", "Checks"), _checks(by_exercise),
        tag("h2", "Most common mistakes"), _mistakes(rows),
        tag("h2", "Submissions to look at"), _to_look_at(rows),
        tag("h2", "Answers that look alike"), _alike(by_exercise, stubs or {}),
    ]  # fmt: skip
    return page("Class report", *parts)


def common_mistakes(rows: Sequence[Row], limit: int = 25) -> list[tuple[str, str, str, list[str]]]:
    """(exercise, check, an example of the message, students) of the messages that most students got.

    Messages that differ in numbers, or in the line of code that they quote, count as one.
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


def _overview(by_exercise: Mapping[str, list[Row]]) -> Html:
    lines = []
    for exercise, rows in sorted(by_exercise.items()):
        scores, most = [row.score for row in rows], max(row.max_score for row in rows)
        full = sum(row.score >= row.max_score for row in rows) / len(rows)
        lines.append((
            exercise, str(len(rows)),
            bar(statistics.mean(scores) / (most or 1), f"{points(statistics.mean(scores))} of {points(most)}"),
            str(points(statistics.median(scores))), bar(full, f"{full:.0%}"), _counts(row.status for row in rows),
            f"{statistics.median(row.seconds for row in rows):.1f} s",
        ))  # fmt: skip
    return table(("exercise", "submissions", "mean", "median", "full marks", "statuses", "median time"), lines)


def _distribution(by_exercise: Mapping[str, list[Row]]) -> Html:
    edges = [f"{100 * i // BINS} to {100 * (i + 1) // BINS} %" for i in range(BINS)]
    lines = []
    for exercise, rows in sorted(by_exercise.items()):
        bins = Counter(min(int(BINS * row.score / (row.max_score or 1)), BINS - 1) for row in rows)
        lines.append((exercise, *(bar(bins[i] / len(rows), str(bins[i])) for i in range(BINS))))
    return table(("exercise", *edges), lines)


def _checks(by_exercise: Mapping[str, list[Row]]) -> Html:
    lines = []
    for exercise, rows in sorted(by_exercise.items()):
        passed: dict[str, list[bool]] = defaultdict(list)
        for row in rows:
            for check in row.checks:
                passed[check.name].append(check.passed)
        for name, results in passed.items():
            share = sum(results) / len(results)
            lines.append((exercise, name, bar(share, f"{sum(results)} of {len(results)} pass")))
    return table(("exercise", "check", "passes"), lines)


def _mistakes(rows: Sequence[Row]) -> Html:
    found = common_mistakes(rows)
    if not found:
        return tag("p", "None.")
    return table(("students", "exercise", "check", "message (an example)", "who"), [
        (str(len(who)), exercise, check, message, _some(who)) for exercise, check, message, who in found
    ])  # fmt: skip


def _to_look_at(rows: Sequence[Row]) -> Html:
    found = [row for row in rows if row.status in _TO_LOOK_AT or is_overridden(row) or row.notes]
    if not found:
        return tag("p", "None.")
    found.sort(key=lambda row: (row.status not in _TO_LOOK_AT, row.status, row.student))
    return table(("student", "exercise", "points", "status", "message", "notes"), [
        (row.student, row.exercise, f"{points(row.score)} of {points(row.max_score)}", row.status, row.message,
         " / ".join(row.notes)) for row in found
    ])  # fmt: skip


def _alike(by_exercise: Mapping[str, list[Row]], stubs: Mapping[str, str]) -> Html:
    pairs: list[Pair] = []
    for exercise, rows in sorted(by_exercise.items()):
        answers = {row.student: "\n\n".join(row.answers.values()) for row in rows if row.answers}
        pairs += similar_pairs(exercise, answers, stubs.get(exercise, ""))
    hint = tag("p", "A hint to look, not a proof: programs are compared after renaming, without comments and layout, "
                    "and short exercises have few right answers.", class_="quiet")  # fmt: skip
    if not pairs:
        return tag("div", hint, tag("p", "None."))
    lines = [(p.exercise, f"{p.first}, {p.second}", bar(p.similarity, f"{p.similarity:.0%}")) for p in pairs]
    return tag("div", hint, table(("exercise", "students", "alike"), lines))


def _some(students: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(students[:limit])
    return shown if len(students) <= limit else f"{shown} and {len(students) - limit} more"


def _counts(values: object) -> str:
    return ", ".join(f"{n} {value}" for value, n in Counter(values).most_common())  # type: ignore[call-overload]
