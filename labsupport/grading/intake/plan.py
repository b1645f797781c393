"""Decide what to do with each submission, given what is there already. Nothing is written here.

The result does not depend on the order of runs: of all versions ever seen the latest is there in the end, in a folder
whose name depends only on the names that were seen.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from labsupport.grading.intake.candidates import Candidate
from labsupport.grading.intake.folder_name import folder_of, name_of
from labsupport.grading.intake.folders import Folders, move_namesakes, read_folders, suffix_of
from labsupport.grading.intake.history import Entry, latest
from labsupport.grading.intake.identify import TestStudent, identify
from labsupport.grading.intake.others import Other, rows_of_others
from labsupport.grading.intake.roster import Roster
from labsupport.grading.intake.spelling import name_key


@dataclass
class Plan:
    """`entries` are the rows for the log; the rest has to be done: `folders`, then `copies` to paths there."""

    folders: Folders
    entries: list[Entry] = field(default_factory=list)
    copies: list[tuple[Candidate, str]] = field(default_factory=list)


def make_plan(
    candidates: Sequence[Candidate],
    old: Sequence[Entry],
    out: Path,
    roster: Roster | None,
    deadline: datetime | None,
    run: str,
    others: Sequence[Other] = (),
) -> Plan:
    there = latest(old)
    folders = read_folders(out, there)
    plan = Plan(folders)
    numbers = _numbers(candidates, there)
    found: list[tuple[Entry, Candidate, str, str]] = []
    for candidate in candidates:
        named = candidate.named
        entry = Entry(
            run, candidate.file.origin, named.person, candidate.exercise, "left out", "", "",
            number=named.number if named.layout == "moodle" else "", version=str(candidate.version),
            digest=candidate.digest, handed_in=_when(candidate.handed_in), late=_lateness(candidate, deadline),
        )  # fmt: skip
        namesakes = named.layout == "moodle" and len(numbers[candidate.exercise, name_key(named.person)]) > 1
        try:
            identity = identify(named, roster, candidate.attempts, namesakes)
            folder = folder_of(identity.student)
            if not folder:
                raise ValueError(f"{named.person!r} cannot be used as the name of a folder")
        except TestStudent as test:
            plan.entries.append(replace(entry, decision="ignored", reason=str(test)))
            continue
        except ValueError as error:
            plan.entries.append(
                replace(entry, reason="; ".join((f"unknown: {error}", *candidate.remarks)), look="look")
            )
            continue
        name = identity.student if "~" in folder else name_of(folder)
        folders.spellings[name_key(name)].add(name)
        remarks = [*candidate.remarks, *([identity.remark] if identity.remark else [])]
        look = candidate.look or (candidate.file.unsure and roster is None)  # a roster that has the name confirms it
        entry = replace(entry, reason="; ".join(remarks), look="look" * look)
        found.append((entry, candidate, name, identity.suffix))
    folders.rename()
    if roster is None:
        plan.entries += move_namesakes(folders, there, numbers, run)
    versions: dict[tuple[str, str], list[tuple[Entry, Candidate]]] = defaultdict(list)
    for entry, candidate, name, suffix in found:
        student = folders.student(name, suffix)
        entry = replace(entry, student=student, folder=folder_of(student))
        if roster is None and (other := _numbered_spelling(candidate, folders)):
            why = f"it may be of {other}, with a number that copying adds: a roster would tell"
            entry = replace(entry, reason="; ".join(filter(None, (entry.reason, why))), look="look")
        versions[entry.target].append((entry, candidate))
    for target in sorted(versions):
        _decide(plan, versions[target], there.get(target))
    plan.entries = rows_of_others(others, plan.entries, _students(plan.entries, there), roster, out) + plan.entries
    return plan


def _decide(plan: Plan, group: list[tuple[Entry, Candidate]], current: Entry | None) -> None:
    """Which of the versions of one exercise of one student is to be there."""
    exercise, folder = group[0][0].exercise, group[0][0].folder
    path = f"{folder}/{exercise}.ipynb"
    present = _digest(plan.folders.now(path))
    group.sort(key=lambda pair: (pair[1].version, pair[1].digest))
    winner, candidate = group[-1]
    known = current is not None and present is not None and current.digest in ("", present)
    if present is not None and not known and present not in {entry.digest for entry, _ in group}:
        why = f"refused: the file in {folder} was not put there by collecting, or was changed since: remove it first"
        plan.entries += [replace(entry, reason=why, look="look") for entry, _ in group]
        return
    stays = known and current is not None and (current.age, current.digest) > (candidate.version, candidate.digest)
    for entry, other in group if stays else group[:-1]:
        best = current if stays and current is not None else winner
        rival = None if stays else candidate
        plan.entries.append(_older(entry, other, best, rival))
    if stays:
        return
    if present == candidate.digest:
        plan.entries.append(replace(winner, decision="unchanged"))
        return
    unsure = known and current is not None and current.age == candidate.version
    if present is None:
        decision, why = "kept", ""
    else:
        decision, why = "replaced", f"is later than {current.source if current else 'what was there'}, which was there"
        why = why if not unsure else f"{why}, or as old: nothing tells"
    reason = "; ".join(part for part in (winner.reason, why) if part)
    plan.entries.append(replace(winner, decision=decision, reason=reason, look=winner.look or "look" * unsure))
    plan.copies.append((candidate, path))


def _older(entry: Entry, candidate: Candidate, best: Entry, rival: Candidate | None) -> Entry:
    """The row of a version that is not the latest; ``rival``: the latest, if it is of this run."""
    if candidate.digest == best.digest:
        return replace(entry, decision="unchanged", reason=f"the same bytes as {best.source}", look=entry.look)
    if candidate.version == best.age:
        why = f"nothing tells whether it is later than {best.source}, which is kept"
        return replace(entry, reason=why, look="look")
    if rival is not None and (folders := _side_by_side(candidate, rival)):
        why = f"{' and '.join(folders)} in one student's folder both have {entry.exercise}, {best.source} is kept: "
        why += "if they are students, give the folder around them as a SOURCE of its own"
        return replace(entry, reason=why, look="look")
    when = f" ({best.handed_in})" if best.handed_in else ""
    return replace(entry, reason=f"an older version: {best.source}{when} is later and kept", look="")


def _numbered_spelling(candidate: Candidate, folders: Folders) -> str:
    """ "alice" for the student "alice 2", if there is an Alice too; else empty."""
    people = candidate.named.people
    if candidate.named.layout != "flat" or len(people) < 2 or name_key(people[1]) not in folders.spellings:
        return ""
    return folders.student(people[1])


def _side_by_side(one: Candidate, other: Candidate) -> list[str]:
    """The folders that hold the two files, if they are side by side, and more than versions ("Version 1")."""
    if {one.named.layout, other.named.layout} - {"folder", "nbgrader"} or one.file.inside or other.file.inside:
        return []
    mine, theirs = one.file.path.parent.parts, other.file.path.parent.parts
    pair = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), None)
    if pair is None or re.sub(r"\d+", "", pair[0]) == re.sub(r"\d+", "", pair[1]):
        return []
    return sorted(map(repr, pair))


def _numbers(candidates: Sequence[Candidate], there: dict[tuple[str, str], Entry]) -> dict[tuple[str, str], set[str]]:
    """(exercise, name) -> Moodle's numbers: two people with one name have two numbers in one assignment."""
    numbers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for candidate in candidates:
        if candidate.named.layout == "moodle":
            numbers[candidate.exercise, name_key(candidate.named.person)].add(candidate.named.number)
    for entry in there.values():
        if entry.number:
            person = entry.student.removesuffix(suffix_of(entry))
            numbers[entry.exercise, name_key(person)].add(entry.number)
    return numbers


def _students(rows: Sequence[Entry], there: dict[tuple[str, str], Entry]) -> dict[tuple[str, str], str]:
    """Key of a name and Moodle's number -> the student who has them."""
    known = [entry for entry in (*there.values(), *rows) if entry.number]
    return {(name_key(e.student.removesuffix(suffix_of(e))), e.number): e.student for e in known}


def _digest(path: Path) -> str | None:
    if not path.is_file() or path.is_symlink():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _when(moment: datetime | None) -> str:
    return moment.isoformat() if moment else ""


def _lateness(candidate: Candidate, deadline: datetime | None) -> str:
    if candidate.named.late:
        return "late"
    if not (deadline and candidate.handed_in and candidate.handed_in > deadline):
        return ""
    return "late by the file's own time, which copying may change" if candidate.by_own_time else "late"
