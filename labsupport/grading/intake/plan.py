"""Decide what to do with each submission, given what is there already. Nothing is written here.

The result does not depend on the order of runs: of all versions ever seen the latest is there in the end, in a folder
whose name depends only on the names that were seen.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from labsupport.grading.intake.candidates import Candidate
from labsupport.grading.intake.folder_name import folder_of, name_of
from labsupport.grading.intake.history import Entry, latest
from labsupport.grading.intake.identify import TestStudent, identify
from labsupport.grading.intake.roster import Roster
from labsupport.grading.intake.spelling import name_key


@dataclass
class Plan:
    """`entries` are the rows for the log; the rest is what has to be done, in this order, with paths below ``out``."""

    entries: list[Entry] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)  # folders
    moved: list[tuple[str, str]] = field(default_factory=list)
    copies: list[tuple[Candidate, str]] = field(default_factory=list)


def make_plan(
    candidates: Sequence[Candidate],
    old: Sequence[Entry],
    out: Path,
    roster: Roster | None,
    deadline: datetime | None,
    run: str,
) -> Plan:
    plan = Plan()
    there = latest(old)
    numbers = _numbers(candidates, there)
    if roster is None:
        _move_namesakes(plan, there, numbers, out, run)
    versions: dict[tuple[str, str], list[tuple[Entry, Candidate]]] = defaultdict(list)
    spellings = _spellings(there, out)
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
            plan.entries.append(replace(entry, reason=f"unknown: {error}", look="look"))
            continue
        student = identity.student if "~" in folder else name_of(folder)
        spellings.setdefault(name_key(student), set()).add(student)
        remarks = [*candidate.remarks, *([identity.remark] if identity.remark else [])]
        entry = replace(entry, student=student, reason="; ".join(remarks), look="look" * candidate.look)
        versions[entry.target].append((entry, candidate))
    for target in sorted(versions):
        student = min(spellings[target[0]])
        _rename(plan, spellings[target[0]], student, out)
        folder = folder_of(student)
        group = [(replace(entry, student=student, folder=folder), c) for entry, c in versions[target]]
        _decide(plan, group, there.get(target), out)
    return plan


def _decide(plan: Plan, group: list[tuple[Entry, Candidate]], current: Entry | None, out: Path) -> None:
    """Which of the versions of one exercise of one student is to be there."""
    exercise, folder = group[0][0].exercise, group[0][0].folder
    path = f"{folder}/{exercise}.ipynb"
    before = dict((after, old) for old, after in plan.renamed).get(folder, folder)
    moved_here = dict((after, old) for old, after in plan.moved)
    present = _digest(out / moved_here.get(path, f"{before}/{exercise}.ipynb"))
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
        plan.entries.append(_older(entry, other, best))
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


def _older(entry: Entry, candidate: Candidate, best: Entry) -> Entry:
    """The row of a version that is not the latest."""
    if candidate.digest == best.digest:
        return replace(entry, decision="unchanged", reason=f"the same bytes as {best.source}", look=entry.look)
    if candidate.version == best.age:
        why = f"nothing tells whether it is later than {best.source}, which is kept"
        return replace(entry, reason=why, look="look")
    when = f" ({best.handed_in})" if best.handed_in else ""
    return replace(entry, reason=f"an older version: {best.source}{when} is later and kept", look="")


def _numbers(candidates: Sequence[Candidate], there: dict[tuple[str, str], Entry]) -> dict[tuple[str, str], set[str]]:
    """(exercise, name) -> Moodle's numbers: two people with one name have two numbers in one assignment."""
    numbers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for candidate in candidates:
        if candidate.named.layout == "moodle":
            numbers[candidate.exercise, name_key(candidate.named.person)].add(candidate.named.number)
    for entry in there.values():
        if entry.number:
            person = entry.student.removesuffix(f"_{entry.number}")
            numbers[entry.exercise, name_key(person)].add(entry.number)
    return numbers


def _move_namesakes(
    plan: Plan, there: dict[tuple[str, str], Entry], numbers: dict[tuple[str, str], set[str]], out: Path, run: str
) -> None:
    """Files of a person whose namesake was not known when they were collected go to a folder with the number."""
    for target, entry in list(there.items()):
        if not entry.number or len(numbers[entry.exercise, target[0]]) < 2:
            continue
        student = f"{entry.student}_{entry.number}"
        before, after = (f"{folder}/{entry.exercise}.ipynb" for folder in (entry.folder, folder_of(student)))
        if (out / before).is_file() and not (out / after).exists():
            why = f"{entry.student!r} is the name of several participants"
            row = replace(
                entry, run=run, source=before, student=student, folder=folder_of(student), decision="moved", reason=why
            )
            plan.moved.append((before, after))
            plan.entries.append(row)
            there[row.target] = row
            del there[target]


def _spellings(there: dict[tuple[str, str], Entry], out: Path) -> dict[str, set[str]]:
    """Key of a name -> how it is spelled in the folders that are there: "Alice" and "alice" are one student."""
    long = {entry.folder: entry.student for entry in there.values()}
    found: dict[str, set[str]] = {}
    for folder in sorted(path for path in out.glob("*/")):
        student = name_of(folder.name, long)
        found.setdefault(name_key(student), set()).add(student)
    return found


def _rename(plan: Plan, spellings: set[str], student: str, out: Path) -> None:
    """One folder for all spellings, called by the first of them in the alphabet, whichever came first."""
    for other in sorted(spellings - {student}):
        if (out / folder_of(other)).is_dir() and not (out / folder_of(student)).exists():
            pair = (folder_of(other), folder_of(student))
            if pair not in plan.renamed:
                plan.renamed.append(pair)
            return


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
