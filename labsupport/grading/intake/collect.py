"""Gather what students handed in, from any of the usual layouts, as ``SUBMISSIONS/<student>/<exercise>.ipynb``.

Files are copied byte by byte, never run: grading says whether they are valid notebooks. A file's path tells whose it
is (`names`, `identify`), path and cells for which exercise. Of several files for one exercise the latest is kept, in
whatever order they are collected. What was decided about each file, and why, is a row of the log (`history`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from labsupport.files import write_atomically
from labsupport.grading.intake.candidates import Candidate, read_source
from labsupport.grading.intake.history import append_log, read_log
from labsupport.grading.intake.incoming import find
from labsupport.grading.intake.others import Other
from labsupport.grading.intake.outcome import Collection
from labsupport.grading.intake.plan import Plan, make_plan
from labsupport.grading.intake.roster import Roster


def collect(
    sources: Iterable[Path],
    out: Path,
    exercises: Sequence[str],
    roster: Roster | None = None,
    deadline: datetime | None = None,
    exercise: str | None = None,
    ids: Mapping[str, frozenset[str]] | None = None,
    dry_run: bool = False,
) -> Collection:
    """Copy the submissions in ``sources`` (folders, zips and tars) below ``out``, each in one step.

    Args:
        exercises: the names of all exercises.
        deadline: a submission handed in later is reported as late; without a time zone it is local time.
        exercise: take every notebook for this one, whatever its name says.
        ids: exercise -> ids of cells that only it has, to recognise a notebook under a wrong name.
        dry_run: write nothing.

    Raises:
        ValueError: a source is neither a folder nor an archive, or one of it and ``out`` lies in the other.
    """
    deadline = deadline.astimezone() if deadline is not None and deadline.tzinfo is None else deadline
    run = datetime.now().astimezone().isoformat(timespec="microseconds")
    candidates: list[Candidate] = []
    others: list[Other] = []
    for source in sources:
        _require_apart(source, out)
        ready, rest = read_source(source, find(source), exercises, exercise, ids or {}, run)
        candidates += ready
        others += rest
    old = read_log(out)
    plan = make_plan(candidates, old, out, roster, deadline, run, others)
    collection = Collection(plan.entries, deadline=deadline, dry_run=dry_run)
    if roster is not None:
        seen = {entry.student for entry in collection.kept}
        collection.missing = [student.id for student in roster.students if student.id not in seen]
    if not dry_run:
        append_log(out, old, collection.entries)  # before the files: what is there is then always in the log
        _carry_out(plan, out)
    return collection


def _carry_out(plan: Plan, out: Path) -> None:
    for after, before in plan.folders.renamed.items():
        os.rename(out / before, out / after)
    for after, before in plan.folders.moved.items():
        (out / after).parent.mkdir(parents=True, exist_ok=True)
        os.rename(out / before, out / after)
        if not any((out / before).parent.iterdir()):
            (out / before).parent.rmdir()
    for candidate, target in plan.copies:
        write_atomically(out / target, candidate.file.read())


def _require_apart(source: Path, out: Path) -> None:
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or (source.is_dir() and inner in outer.parents):
        raise ValueError(f"--out must lie outside of SOURCE, got {out} and {source}")
