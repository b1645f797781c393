"""What grading found: one row per student and exercise, and the folder that keeps the rows.

A row is written as soon as it is known, to ``GRADES/results/<student>/<exercise>.json``, in one step: a reader sees the
old row or the new one. After an interruption grading reads them and grades only what is missing or has changed. These
files hold more than a student may see (the seed's fingerprint); `feedback` makes the page for the student from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labsupport.files import write_atomically
from labsupport.grading.intake.folder_name import folder_of, name_of

STATUSES = (
    "ok",  # full marks
    "failed",  # the answer ran, and at least one check does not hold
    "not attempted",  # the answer cells still hold the stubs
    "timeout",
    "memory",
    "exited",  # the code ended its own process, or crashed it
    "output limit",
    "invalid notebook",
    "error",  # the grader's own failure, never the student's
)


@dataclass(frozen=True)
class CheckResult:
    """One check of one row. `message` is one line, and holds only what the student may see."""

    name: str
    points: float
    max_points: float
    passed: bool
    message: str
    attempted: bool = True


@dataclass(frozen=True)
class Row:
    student: str
    exercise: str
    score: float
    max_score: float
    status: str  # one of STATUSES
    message: str  # one line: the first thing that went wrong, or what holds
    checks: tuple[CheckResult, ...] = ()
    notes: tuple[str, ...] = ()  # about the notebook as handed in: duplicated cells, own cells that were used, ...
    seconds: float = 0.0  # wall clock in the sandbox
    cpu_seconds: float = 0.0
    memory_mb: float = 0.0  # peak resident memory, including the 250 MB of torch itself
    isolation: str = ""  # "namespaces", "landlock" or "none"; "" where no code ran
    digest: str = ""  # of the file as handed in
    exercise_digest: str = ""  # of the exercise as handed out
    seed_fingerprint: str = ""
    version: str = ""  # of labsupport
    answers: dict[str, str] = field(default_factory=dict)  # cell id -> source, for similarity and feedback

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, got {self.status!r}")


class Results:
    """The rows under ``GRADES/results``."""

    def __init__(self, out: Path | str) -> None:
        self.folder = Path(out) / "results"

    def path(self, student: str, exercise: str) -> Path:
        return self.folder / file_name(student) / f"{file_name(exercise)}.json"

    def save(self, row: Row) -> None:
        write_atomically(self.path(row.student, row.exercise), json.dumps(asdict(row), indent=1, ensure_ascii=True))

    def load(self, student: str, exercise: str) -> Row | None:
        """None if there is no readable row: the submission is graded again then."""
        return _read(self.path(student, exercise))

    def __iter__(self) -> Iterator[Row]:
        """All rows, by student and exercise."""
        read = ((path, _read(path)) for path in self.folder.glob("*/*.json"))
        rows = [row for path, row in read if row and path == self.path(row.student, row.exercise)]
        return iter(sorted(rows, key=lambda row: (row.student, row.exercise)))


def file_name(name: str) -> str:
    """``name`` as one path component, a different one for every name."""
    folder = folder_of(name)
    if name and name_of(folder) == name:
        return folder
    return f"{folder}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def fingerprint(seed: int) -> str:
    """Tells whether two rows were graded with the same seed, without revealing it."""
    return hashlib.sha256(f"labsupport seed {seed}".encode()).hexdigest()[:12]


def one_line(text: str, limit: int = 500) -> str:
    """``text`` without line breaks and control characters, cut at ``limit`` characters."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def _read(path: Path) -> Row | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        checks = tuple(CheckResult(**check) for check in data.pop("checks"))
        return replace(Row(**data), checks=checks, notes=tuple(data["notes"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
