"""Which files of a source are submissions: notebooks with a known exercise. The rest is decided here, with a reason."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePosixPath

from labsupport.grading.intake.course import exercises_in
from labsupport.grading.intake.exports import METADATA, Attempt, read_metadata
from labsupport.grading.intake.found import File, Found, Refused
from labsupport.grading.intake.history import Entry, Version
from labsupport.grading.intake.kinds import (
    NOISE_FOLDERS,
    is_apple_double,
    is_notebook_name,
    is_renamed_notebook,
    noise,
    why_not_read,
)
from labsupport.grading.intake.names import Named, is_of_an_lms, read_name, without_wrapper
from labsupport.grading.intake.others import Other
from labsupport.grading.intake.stamps import read_stamp

_LMS = ("moodle", "canvas")  # their archives do not say when a file was handed in


@dataclass(frozen=True)
class Candidate:
    """A notebook with an exercise, before it is known whose it is."""

    file: File
    named: Named
    exercise: str
    handed_in: datetime | None
    by_own_time: bool  # whether `handed_in` is only the file's own time
    version: Version
    digest: str
    remarks: tuple[str, ...] = ()
    look: bool = False
    attempts: Mapping[str, Attempt] = field(default_factory=dict)


def read_source(
    source: Path,
    found: Found,
    exercises: Sequence[str],
    exercise: str | None,
    ids: Mapping[str, frozenset[str]],
    run: str,
) -> tuple[list[Candidate], list[Other]]:
    """The submissions in a source, and a row for every other file."""
    decided = [
        Other(Entry(run, origin, "", "", "left out", f"refused: {why}", "look")) for origin, why in found.refused
    ]
    times = [file.modified for file in found.files if _real(file.modified)]
    download = max((time.timestamp() for time in times if time), default=0.0)
    source_time = source.stat().st_mtime if source.is_file() else 0.0
    stamps = {file.path.parent: file for file in found.files if file.path.name == "timestamp.txt"}
    attempts = _attempts(found.files)
    files: list[File] = []
    kept_by_programs: list[File] = []
    for file in found.files:
        (kept_by_programs if noise(file.inside or file.path) else files).append(file)
    notebooks = [f.path for f in files if is_notebook_name(f.path.name) or f.inside] or [f.path for f in files]
    stripped = dict(zip(notebooks, without_wrapper(notebooks, exercises, bool(stamps)), strict=True))
    skip = min((len(path.parts) - len(inner.parts) for path, inner in stripped.items()), default=0)
    decided += [_of_a_program(run, file, skip, exercises) for file in kept_by_programs]
    candidates = []
    for file in files:
        path = stripped.get(file.path) or PurePosixPath(*file.path.parts[min(skip, len(file.path.parts) - 1) :])
        try:
            data = _notebook(file)
            named = read_name(path, exercises, file.inside)
            chosen, remarks, look = _exercise(named, exercise, exercises_in(data, ids))
        except (_NotANotebook, Refused, ValueError) as problem:
            decided.append(_other(run, file, path, exercises, problem, attempts))
            continue
        stamp, unclear = _stamp(stamps.get(file.path.parent))
        told = named.time or _created(named, attempts) or stamp
        own = file.modified if _real(file.modified) else None
        handed_in = told or (None if named.layout in _LMS else own)
        order = download if named.layout in _LMS else handed_in.timestamp() if handed_in else 0.0
        version = Version(order, *named.version, own.timestamp() if own else 0.0, source_time)
        notes = tuple(note for note in (file.remark, unclear, *remarks) if note)
        digest = hashlib.sha256(data).hexdigest()
        candidates.append(
            Candidate(file, named, chosen, handed_in, told is None, version, digest, notes, look, attempts)
        )
    return _without_class_archives(candidates, decided, run)


def _without_class_archives(
    candidates: list[Candidate], decided: list[Other], run: str
) -> tuple[list[Candidate], list[Other]]:
    """Leave out archives among the files that are hardly one student's: they hold an exercise twice."""
    counts = Counter((c.file.path, c.exercise) for c in candidates if c.file.inside)
    several = {path for (path, _), count in counts.items() if count > 1}
    several |= {c.file.path for c in candidates if c.file.inside and is_of_an_lms(c.file.inside)}
    why = "refused: lies in an archive that seems to hold a class's work: name that as a SOURCE of its own"
    left = [c for c in candidates if c.file.inside and c.file.path in several]
    decided += [Other(Entry(run, c.file.origin, "", c.exercise, "left out", why, "look")) for c in left]
    return [c for c in candidates if not (c.file.inside and c.file.path in several)], decided


class _NotANotebook(Exception):
    """The file holds no notebook; `look` says whether it may hold an answer."""

    def __init__(self, why: str, look: bool) -> None:
        super().__init__(why)
        self.look = look


def _notebook(file: File) -> bytes:
    name = (file.inside or file.path).name
    data = file.read()
    if is_notebook_name(name) and not data.strip():
        raise _NotANotebook("is empty", True)
    if is_apple_double(data):
        raise _NotANotebook("is what macOS keeps beside a file (AppleDouble), not a notebook", True)
    if is_notebook_name(name) or is_renamed_notebook(data):
        return data
    why = why_not_read(name)
    raise _NotANotebook(why or "is not a notebook", bool(why))


def _exercise(named: Named, given: str | None, held: Sequence[str]) -> tuple[str, list[str], bool]:
    """The exercise, remarks on how it was found, and whether somebody should look.

    Raises:
        ValueError: neither name nor cells tell it.
    """
    said = named.exercises
    if given is not None:
        other = bool(held) and given not in held
        return given, [f"it holds {held[0]}, by its cells, and is taken for {given} as told"] if other else [], other
    if len(said) == 1 and (not held or said[0] in held):
        more = [name for name in held if name != said[0]]
        remarks = [f"it also holds cells of {' and '.join(more)}, which are not taken"] if more else []
        return said[0], remarks, bool(more)
    if len(held) == 1 and not (len(said) > 1 and held[0] not in said):
        name = f"its name says {said[0]}" if len(said) == 1 else "its name does not tell the exercise"
        return held[0], [f"{name}, its cells are those of {held[0]}"], False
    if len(said) > 1:
        raise ValueError(f"the name may mean {' or '.join(sorted(said))}")
    if held:
        raise ValueError(
            f"it holds cells of {' and '.join(sorted(held))}, and its name says {said[0] if said else 'none'}"
        )
    raise ValueError("there is no exercise in the name")


def _other(
    run: str,
    file: File,
    path: PurePosixPath,
    exercises: Sequence[str],
    problem: Exception,
    attempts: Mapping[str, Attempt],
) -> Other:
    """The row of a file that is no submission, with the name of the student, as far as the path tells it."""
    named, person, exercise = _who(path, exercises, file.inside)
    if isinstance(problem, _NotANotebook) and not problem.look:
        return Other(Entry(run, file.origin, person, exercise, "ignored", str(problem)), named, attempts)
    kind = "unknown" if isinstance(problem, ValueError) else "refused"
    return Other(Entry(run, file.origin, person, "", "left out", f"{kind}: {problem}", "look"), named, attempts)


def _of_a_program(run: str, file: File, skip: int, exercises: Sequence[str]) -> Other:
    """The row of a file that a program keeps for itself: it may be all that is left of what a student has."""
    row = Entry(run, file.origin, "", "", "ignored", noise(file.inside or file.path))
    path, inside = _without_noise(file.path), file.inside and _without_noise(file.inside)
    path = PurePosixPath(*path.parts[min(skip, len(path.parts) - 1) :])
    named, person, exercise = _who(path, exercises, inside)
    named_so = is_notebook_name((inside or path).name)
    return Other(replace(row, student=person, exercise=exercise if named_so else ""), named)


def _without_noise(path: PurePosixPath) -> PurePosixPath:
    """Where the file would lie that this one is kept for."""
    folders = [part for part in path.parts[:-1] if part != "__MACOSX"]  # which holds the same folders again
    depth = next((i for i, part in enumerate(folders) if part in NOISE_FOLDERS), len(folders))
    return PurePosixPath(*folders[:depth], path.name.removeprefix("._"))


def _who(path: PurePosixPath, exercises: Sequence[str], inside: PurePosixPath | None) -> tuple[Named | None, str, str]:
    """What the path says, the student and the exercise, as far as it tells them."""
    try:
        named = read_name(path, exercises, inside)
    except ValueError:
        return None, "", ""
    person = named.person if path.parts[:-1] or named.exercises or named.layout != "flat" else ""
    return named, person, named.exercises[0] if len(named.exercises) == 1 else ""


def _attempts(files: Sequence[File]) -> dict[str, Attempt]:
    found: dict[str, Attempt] = {}
    for file in files:
        if file.path.name == METADATA and file.inside is None and not file.path.parent.name.startswith("submission_"):
            try:
                found |= read_metadata(file.read().decode("utf-8-sig"))
            except (Refused, UnicodeDecodeError):
                continue
    return found


def _created(named: Named, attempts: Mapping[str, Attempt]) -> datetime | None:
    attempt = attempts.get(named.number) if named.layout == "gradescope" else None
    return attempt.created if attempt else None


def _stamp(file: File | None) -> tuple[datetime | None, str]:
    if file is None:
        return None, ""
    try:
        return read_stamp(file.read()[:200].decode("utf-8-sig"))
    except (Refused, UnicodeDecodeError):
        return None, "its timestamp.txt cannot be read"


def _real(moment: datetime | None) -> bool:
    """Whether it is a time, and not the first day of 1980 that archives write for none."""
    return moment is not None and moment.timetuple()[:3] != (1980, 1, 1)
