"""`SUBMISSIONS/collected.csv`: one row for every file of every run, with what was decided, and why.

Later runs read it: it says how old the files are that are there, so that an older archive replaces nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from labsupport.grading.intake.folder_name import folder_of, name_of
from labsupport.grading.intake.spelling import name_key
from labsupport.grading.reports.csv_safe import unguard, write_csv

FILE = "collected.csv"
THERE = ("kept", "replaced", "unchanged", "moved")  # decisions after which the file is there


class Version(NamedTuple):
    """What orders the versions of one exercise of one student; larger is later.

    `time` is when it was handed in, or, where the LMS does not say, when all was downloaded.
    """

    time: float = 0.0
    file_id: int = 0  # Canvas counts files
    again: int = 0  # the 2 of "ex01 (2)"
    own_time: float = 0.0
    source_time: float = 0.0

    def __str__(self) -> str:
        return " ".join(map(repr, self))


@dataclass(frozen=True)
class Entry:
    """A row. `decision`: kept, replaced, unchanged, moved, left out or ignored."""

    run: str
    source: str
    student: str
    exercise: str
    decision: str
    reason: str
    look: str = ""  # "look" where somebody should
    late: str = ""
    handed_in: str = ""
    folder: str = ""
    number: str = ""  # Moodle's, of the participant
    version: str = ""
    digest: str = ""

    @property
    def target(self) -> tuple[str, str]:
        return name_key(self.student), self.exercise

    @property
    def age(self) -> Version:
        try:
            time, file_id, again, own_time, source_time = self.version.split(" ")
            return Version(float(time), int(file_id), int(again), float(own_time), float(source_time))
        except ValueError:
            return Version()


HEADER = [field.name for field in fields(Entry)]


def read_log(out: Path) -> list[Entry]:
    """All rows so far, in order; none if nothing was collected yet.

    Raises:
        ValueError: the file is not such a log.
    """
    path = out / FILE
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not in UTF-8: move it away to begin a new log") from None
    entries = []
    for row in csv.DictReader(io.StringIO(text, newline="")):
        cells = {name: unguard(row.get(name) or "") for name in HEADER}
        if "decision" not in row:  # written by a version that kept only the last run
            cells |= {"decision": "kept", "folder": folder_of(cells["student"])}
        if cells["folder"] and "~" not in cells["folder"]:  # which is exact: a table shows no control characters
            cells["student"] = name_of(cells["folder"])
        entries.append(Entry(**cells))
    return entries


def append_log(out: Path, old: Iterable[Entry], new: Iterable[Entry]) -> None:
    """Write the log anew, in one step."""
    rows = ([getattr(entry, name) for name in HEADER] for entry in (*old, *new))
    write_csv(out / FILE, HEADER, rows)


def latest(entries: Iterable[Entry]) -> dict[tuple[str, str], Entry]:
    """Target -> the last row that put or found a file there."""
    return {entry.target: entry for entry in entries if entry.decision in THERE}


def long_names(out: Path) -> dict[str, str]:
    """Folder -> student, for names that were too long to be read back from their folder."""
    return {entry.folder: entry.student for entry in read_log(out) if "~" in entry.folder and entry.student}
