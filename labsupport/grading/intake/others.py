"""Files that are no submissions: whose they are, and whether that person has handed in a notebook as well.

A picture beside a notebook is no loss. Where it is all that somebody has, somebody should look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from labsupport.grading.intake.exports import Attempt
from labsupport.grading.intake.folder_name import folder_of
from labsupport.grading.intake.history import Entry
from labsupport.grading.intake.identify import identify
from labsupport.grading.intake.names import Named
from labsupport.grading.intake.roster import Roster
from labsupport.grading.intake.spelling import name_key

Numbers = Mapping[tuple[str, str], str]  # key of a name, Moodle's number -> student


@dataclass(frozen=True)
class Other:
    """The row of such a file, and what its path says, as far as that can be read."""

    entry: Entry
    named: Named | None = None
    attempts: Mapping[str, Attempt] = field(default_factory=dict)


def rows_of_others(
    others: Iterable[Other], submitted: Collection[Entry], numbers: Numbers, roster: Roster | None, out: Path
) -> list[Entry]:
    """A row for each; those that are all that a student has are "left out".

    Args:
        submitted: the rows of the submissions of this run.
    """
    have = {entry.target for entry in submitted if entry.decision != "left out" and entry.digest}
    people = {person for person, _ in have}
    rows = []
    for other in others:
        entry = replace(other.entry, student=_student(other, numbers, roster))
        if entry.decision != "ignored" or not entry.student:
            rows.append(entry)
            continue
        seen = entry.target in have if entry.exercise else entry.target[0] in people
        if seen or any((out / folder_of(entry.student)).glob(f"{entry.exercise or '*'}.ipynb")):
            rows.append(entry)
            continue
        lacking = f"no notebook for {entry.exercise}" if entry.exercise else "no notebook"
        why = f"unknown: {entry.reason}, and {entry.student} has {lacking}"
        rows.append(replace(entry, decision="left out", look="look", reason=why))
    return rows


def _student(other: Other, numbers: Numbers, roster: Roster | None) -> str:
    """The name as for a submission; where that is not known, what the path says."""
    named = other.named
    if named is None or not other.entry.student:
        return other.entry.student
    if named.layout == "moodle" and roster is None:
        key = name_key(named.person)
        namesake = any(name == key and number != named.number for name, number in numbers)
        return numbers.get((key, named.number), f"{named.person}_{named.number}" if namesake else named.person)
    try:
        return identify(named, roster, other.attempts, namesakes=False).student
    except ValueError:
        return other.entry.student
