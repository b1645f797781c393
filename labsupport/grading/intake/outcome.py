"""What a run of `collect` did with every file, and how that is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from labsupport.grading.intake.history import THERE, Entry
from labsupport.grading.reports.csv_safe import printable


@dataclass
class Collection:
    """The rows of one run, one for every file, and who of the roster is missing."""

    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # students of the roster without any file in these sources
    deadline: datetime | None = None
    dry_run: bool = False

    @property
    def kept(self) -> list[Entry]:
        """Files that are there now, whether they were before or not."""
        return [entry for entry in self.entries if entry.decision in THERE and entry.decision != "moved"]

    @property
    def left_out(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.decision == "left out"]

    @property
    def complete(self) -> bool:
        """Whether there is nothing that somebody should look at."""
        return not any(entry.look for entry in self.entries)

    def __str__(self) -> str:
        counts = Counter(entry.decision for entry in self.entries)
        students = {entry.student for entry in self.kept}
        before = f"{counts['unchanged']} were there already, {counts['replaced']} replace an older version"
        lines = [f"{len(self.kept)} submissions of {len(students)} students ({before})"]
        lines += [
            f"late       {e.student}/{e.exercise}: {e.late}, {e.handed_in or 'time unknown'}"
            for e in self.kept
            if e.late
        ]
        lines += [_line(entry) for entry in self.entries if entry.reason]
        lines += [f"nothing    {student}: no submission in these sources" for student in self.missing]
        untimed = sum(not entry.handed_in for entry in self.kept)
        if self.deadline is not None and untimed:
            lines.append(f"note       the files of {untimed} submissions do not say when they were handed in: "
                         "see the LMS for who was late (Canvas's LATE is read from the name)")  # fmt: skip
        return "\n".join(printable(line) for line in lines)

    def table(self) -> str:
        """Every decision in a line of its own, as for `--dry-run`."""
        rows = [("decision", "student", "exercise", "source", "why")]
        rows += [(e.decision + "!" * bool(e.look), e.student, e.exercise, e.source, e.reason) for e in self.entries]
        widths = [min(max(len(row[i]) for row in rows), 40) for i in range(4)]
        return "\n".join(
            printable("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
            for row in rows
        )


def _line(entry: Entry) -> str:
    who = f" ({entry.student})" if entry.student and entry.decision in ("left out", "ignored") else ""
    kind = _kind(entry)
    return f"{kind:<10} {entry.source}{who}: {entry.reason.removeprefix(f'{kind}: ')}"


def _kind(entry: Entry) -> str:
    """The word in front of a line."""
    if entry.decision == "left out":
        return entry.reason.partition(":")[0] if entry.reason.startswith(("unknown:", "refused:")) else "left out"
    return entry.decision if entry.decision != "kept" else "guessed"
