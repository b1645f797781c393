"""Gather what students handed in, from any of the usual layouts, as ``SUBMISSIONS/<student>/<exercise>.ipynb``.

Files are copied byte by byte, never parsed or run: grading says whether they are valid notebooks. A file's path tells
whose it is and for which exercise (`names`); with a roster, names that are not on it are reported and left out. Of
several files for the same exercise the latest is kept. Late ones are kept and reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from zoneinfo import ZoneInfo

from labsupport.files import write_atomically
from labsupport.grading.intake.incoming import File, Found, Refused, find
from labsupport.grading.intake.names import Named, read_name, wrapper
from labsupport.grading.intake.roster import Roster, safe_name, squash
from labsupport.grading.reports.csv_safe import write_csv

MANIFEST = "collected.csv"


@dataclass(frozen=True)
class Submission:
    student: str
    exercise: str
    file: File
    named: Named
    handed_in: datetime | None  # None where the layout does not say: zips of Moodle and Canvas
    late: bool


@dataclass
class Collection:
    """What became of every file that was found."""

    kept: list[Submission] = field(default_factory=list)
    unchanged: int = 0  # of `kept`: the same bytes were there already
    replaced: list[str] = field(default_factory=list)  # of `kept`: another version was there
    duplicates: list[tuple[Submission, Submission]] = field(default_factory=list)  # (left out, kept instead)
    unknown: list[tuple[str, str]] = field(default_factory=list)  # (file, why)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # files that are not notebooks
    missing: list[str] = field(default_factory=list)  # students of the roster without any file
    deadline: datetime | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing was left out that somebody should look at."""
        return not self.unknown and not self.refused

    def __str__(self) -> str:
        students = {submission.student for submission in self.kept}
        lines = [f"{len(self.kept)} submissions of {len(students)} students"
                 f" ({self.unchanged} were there already, {len(self.replaced)} replace an older version)"]  # fmt: skip
        lines += [f"late       {s.student}/{s.exercise}: {_when(s)}" for s in self.kept if s.late]
        lines += [
            f"duplicate  {left.student}/{left.exercise}: {left.file.origin} ({_when(left)}) is left out,"
            f" {kept.file.origin} ({_when(kept)}) is later and kept"
            for left, kept in self.duplicates
        ]
        lines += [f"unknown    {name}: {why}" for name, why in self.unknown]
        lines += [f"refused    {name}: {why}" for name, why in self.refused]
        lines += [f"nothing    {student}: no submission in these sources" for student in self.missing]
        if self.ignored:
            lines.append(f"ignored    {len(self.ignored)} files that are not notebooks, such as {self.ignored[0]}")
        untimed = sum(submission.handed_in is None for submission in self.kept)
        if self.deadline is not None and untimed:
            lines.append(f"note       the files of {untimed} submissions do not say when they were handed in: "
                         "see the LMS for who was late (Canvas's LATE is read from the name)")  # fmt: skip
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def collect(
    sources: Iterable[Path],
    out: Path,
    exercises: Sequence[str],
    roster: Roster | None = None,
    deadline: datetime | None = None,
    exercise: str | None = None,
) -> Collection:
    """Copy the submissions in ``sources`` (folders and zips) below ``out``, each in one step.

    Args:
        exercises: the names of all exercises.
        deadline: a submission handed in later is reported as late; without a time zone it is local time.
        exercise: take every notebook for this one; for LMS assignments whose files may have any name.

    Raises:
        ValueError: a source is neither a folder nor a zip, or one of it and ``out`` lies in the other.
    """
    deadline = deadline.astimezone() if deadline is not None and deadline.tzinfo is None else deadline
    collection = Collection(deadline=deadline)
    submissions: list[Submission] = []
    for source in sources:
        _require_apart(source, out)
        found = find(source)
        collection.refused += found.refused
        collection.ignored += found.ignored
        submissions += _identify(source, found, exercises, exercise, roster, collection)
    versions: dict[tuple[str, str], list[Submission]] = defaultdict(list)
    # "Alice" and "alice" are one folder on many systems, so they must be one student everywhere
    spelling = {folder.name.casefold(): folder.name for folder in out.glob("*/")}
    for submission in sorted(submissions, key=_age):
        student = spelling.setdefault(submission.student.casefold(), submission.student)
        versions[student, submission.exercise].append(replace(submission, student=student))
    collection.duplicates = [(older, latest) for *left, latest in versions.values() for older in left]
    for submission in sorted((every[-1] for every in versions.values()), key=lambda s: (s.student, s.exercise)):
        _copy(submission, out, collection)
    if roster is not None:
        seen = {submission.student for submission in collection.kept}
        collection.missing = [student.id for student in roster.students if student.id not in seen]
    _write_manifest(out, collection)
    return collection


def _identify(
    source: Path,
    found: Found,
    exercises: Sequence[str],
    exercise: str | None,
    roster: Roster | None,
    collection: Collection,
) -> list[Submission]:
    stamps = {file.path.parent: _read_stamp(file) for file in found.files if file.path.name == "timestamp.txt"}
    notebooks = [file for file in found.files if file.path.suffix.lower() == ".ipynb"]
    skip = wrapper([file.path for file in notebooks], exercises, bool(stamps))
    named: list[tuple[File, Named]] = []
    for file in notebooks:
        path = PurePosixPath(*file.path.parts[skip:])
        if exercise is not None:
            path = path.with_name(_with_exercise(path, exercise))
        try:
            named.append((file, read_name(path, exercises)))
        except ValueError as error:
            collection.unknown.append((file.origin, str(error)))
    numbers = defaultdict(set)  # Moodle: two people with one name have two numbers in one assignment
    for _, name in named:
        numbers[name.layout, name.exercise, squash(name.person)].add(name.number)
    submissions = []
    for file, name in named:
        try:
            namesakes = len(numbers[name.layout, name.exercise, squash(name.person)]) > 1
            student = _student(name, roster, namesakes)
        except ValueError as error:
            collection.unknown.append((file.origin, str(error)))
            continue
        told = None if name.layout in ("moodle", "canvas") else file.modified  # theirs is the time of the download
        handed_in = stamps.get(file.path.parent) or told
        late = name.late or bool(collection.deadline and handed_in and handed_in > collection.deadline)
        submissions.append(Submission(student, name.exercise, file, name, handed_in, late))
    return submissions


def _with_exercise(path: PurePosixPath, exercise: str) -> str:
    """The file's name, with the exercise added unless the name holds it already."""
    return path.name if exercise in path.name else f"{path.stem}_{exercise}.ipynb"


def _student(name: Named, roster: Roster | None, namesakes: bool) -> str:
    """The student's id.

    Raises:
        ValueError: the name is not on the roster, means several people there, or cannot name a folder.
    """
    if roster is not None:
        student = roster.find(name.people)
        if namesakes and name.layout == "moodle":
            raise ValueError(f"several participants are called {name.person!r}")
        if student is None:
            raise ValueError(f"{name.person!r} is not on the roster")
        return student.id
    if name.layout == "canvas":
        student_id = safe_name("_".join(reversed(name.people)))  # doejane_1234: the number makes it unique
    else:
        student_id = safe_name(f"{name.people[0]}_{name.number}" if namesakes else name.people[0])
    if not student_id:
        raise ValueError(f"{name.person!r} cannot be used as the name of a folder")
    return student_id


def _age(submission: Submission) -> tuple[datetime, tuple[int, int], str]:
    return submission.handed_in or datetime.min.replace(tzinfo=UTC), submission.named.version, submission.file.origin


def _copy(submission: Submission, out: Path, collection: Collection) -> None:
    target = out / submission.student / f"{submission.exercise}.ipynb"
    try:
        data = submission.file.read()
    except Refused as refused:
        collection.refused.append((submission.file.origin, str(refused)))
        return
    collection.kept.append(submission)
    if target.is_file() and not target.is_symlink():
        if target.read_bytes() == data:
            collection.unchanged += 1
            return
        collection.replaced.append(f"{submission.student}/{submission.exercise}")
    write_atomically(target, data)


def _read_stamp(file: File) -> datetime | None:
    """Parse nbgrader's ``2026-02-02 15:58:23.948203 UTC`` (or a zone like ``Europe/Berlin``); None if that fails."""
    try:
        day, clock, zone = file.read().decode()[:100].split()
        return datetime.fromisoformat(f"{day} {clock}").replace(tzinfo=ZoneInfo(zone))
    except (Refused, ValueError, OSError, KeyError):  # KeyError: an unknown time zone
        return None


def _require_apart(source: Path, out: Path) -> None:
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or (source.is_dir() and inner in outer.parents):
        raise ValueError(f"--out must lie outside of SOURCE, got {out} and {source}")


def _write_manifest(out: Path, collection: Collection) -> None:
    """Record where each submission came from."""
    rows = [
        [s.student, s.exercise, "late" if s.late else "", s.handed_in.isoformat() if s.handed_in else "", s.file.origin]
        for s in collection.kept
    ]
    write_csv(out / MANIFEST, ["student", "exercise", "late", "handed_in", "source"], rows)


def _when(submission: Submission) -> str:
    if submission.handed_in is None:
        return "late according to the LMS" if submission.late else "time unknown"
    return submission.handed_in.isoformat(sep=" ", timespec="seconds")
