"""Names in the exports of Blackboard, Brightspace and Gradescope.

    Exercise 1_jdoe_attempt_2026-02-01-12-30-45_ex01.ipynb     Blackboard, "Assignment File Download"
    123-456 - Jane Doe - Jan 2, 2026 1023 AM - ex01.ipynb      Brightspace, "Download"
    assignment_77_export/submission_1234/ex01.ipynb            Gradescope, "Export Submissions"

Blackboard writes the login and the time of each attempt; a file without a name after the time is its own receipt.
Gradescope writes a number for each attempt, and says in submission_metadata.yml whose it is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime

BLACKBOARD = re.compile(
    r"^(?P<title>.+)_(?P<login>[^_]+)_attempt_(?P<time>\d{4}(?:-\d\d){5})(?:_(?P<file>.+))?$", re.DOTALL
)
BRIGHTSPACE = re.compile(
    r"^\d+-\d+ ?- ?(?P<name>.+?) ?- ?(?P<time>[A-Z][a-z]+ \d{1,2}, \d{4} \d{3,4} [AP]M) ?- ?(?P<file>.+)$", re.DOTALL
)
GRADESCOPE = re.compile(r"^submission_(\d{3,})$")
METADATA = "submission_metadata.yml"


@dataclass(frozen=True)
class Attempt:
    """One submission of Gradescope."""

    people: tuple[tuple[str, ...], ...]  # of each submitter: student id, e-mail, name, those that are known
    created: datetime | None


def blackboard_time(text: str) -> datetime | None:
    """When an attempt was handed in, in the server's time, which is taken as local time."""
    try:
        return datetime.strptime(text, "%Y-%m-%d-%H-%M-%S").astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def brightspace_time(text: str) -> datetime | None:
    """When a file was handed in: "Jan 2, 2026 1023 AM", in local time, with the month in full or not."""
    day, _, clock = text.rpartition(", ")
    year, digits, half = clock.split()
    for month in ("%b", "%B"):
        try:
            moment = f"{day} {year} {digits[:-2]}:{digits[-2:]} {half}"
            return datetime.strptime(moment, f"{month} %d %Y %I:%M %p").astimezone()
        except (ValueError, OverflowError, OSError):
            continue
    return None


def read_metadata(text: str) -> dict[str, Attempt]:
    """Number of a submission -> whose it is, from submission_metadata.yml as Gradescope writes it.

    Only the lines that are needed are read, by their names and not by their place, so that the results of an
    autograder beside them cannot matter: those are indented more deeply.
    """
    attempts: dict[str, Attempt] = {}
    number, created = "", None
    people: list[dict[str, str]] = []
    for line in [*text.splitlines(), "submission_0:"]:
        if found := re.match(r"submission_(\d+):\s*$", line):
            if number:
                known = tuple(tuple(filter(None, map(p.get, ("sid", "email", "name")))) for p in people)
                attempts[number] = Attempt(known, created)
            number, created, people = found[1], None, []
        elif found := re.match(r" {2}(?:- | {2}):(name|sid|email):\s*(.*)$", line):
            if line.startswith("  - "):
                people.append({})
            if people:
                people[-1][found[1]] = _scalar(found[2])
        elif found := re.match(r" {2}:created_at:\s*(.*)$", line):
            created = _time(_scalar(found[1]))
    return attempts


def _scalar(text: str) -> str:
    text = text.strip()
    if text.startswith('"'):
        try:
            return str(json.loads(re.sub(r"\\x([0-9A-Fa-f]{2})", r"\\u00\1", text)))
        except ValueError:
            return text.strip('"')
    if text.startswith("'"):
        return text.strip("'").replace("''", "'")
    return "" if text in ("null", "~") else text


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(re.sub(r" (Z|UTC|[+-]\d)", r"\1", text).replace("UTC", "Z"))
    except ValueError:
        return None
    return found if found.tzinfo else found.astimezone()
