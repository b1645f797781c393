"""Whose file is this, and for which exercise? What its path says.

    ex01_int8_symmetric_alice.ipynb, alice_ex01.ipynb         flat
    alice/ex01_int8_symmetric.ipynb                           a folder per student
    submitted/alice/week1/ex01_int8_symmetric.ipynb           nbgrader
    Jane Doe_12345_assignsubmission_file_/ex01.ipynb          Moodle, "Download all submissions", as folders or not
    doejane_LATE_1234_5678_ex01_int8_symmetric-2.ipynb        Canvas, "Download submissions"
    Exercise 1_jdoe_attempt_2026-02-01-12-30-45_ex01.ipynb    Blackboard; for others see `exports`

Moodle's number identifies the participant within one assignment, and a group's name and a hyphen may stand before the
person's; Canvas's first number identifies the user in all courses, its second the file (mod/assign/classes/
downloader.php of Moodle, lib/content_zipper.rb of Canvas).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePosixPath

from labsupport.grading.intake.copies import without_copy_marks, without_inner_marks
from labsupport.grading.intake.exports import BLACKBOARD, BRIGHTSPACE, GRADESCOPE, blackboard_time, brightspace_time

_MOODLE = re.compile(r"^(?P<name>.+?)_(?P<id>\d+)_assignsubmission_[a-z]+(?:_(?P<file>.*))?$", re.DOTALL)
_CANVAS = re.compile(r"^(?P<name>.+?)_(?P<late>LATE_)?(?P<id>[1-9]\d*)_(?P<file_id>[1-9]\d*)_(?P<file>.+)$", re.DOTALL)
_CANVAS_ANONYMOUS = re.compile(r"^(?P<name>)(?P<late>LATE_)?(?P<id>anon_\w{5})_(?P<file_id>\d+)_(?P<file>.+)$")
_PERHAPS_AGAIN = re.compile(r"(?:[ _-]|[ _-]+v)(\d{1,3})$", re.IGNORECASE)  # or part of a name: "group-3"
_SURELY_AGAIN = re.compile(r"(?:[- ]|[ _-]+v)(\d{1,3})$", re.IGNORECASE)  # right after the exercise
_EXERCISE = (
    "ex|exercise|exercice|ejercicio|exerc[ií]cio|esercizio|übung|aufgabe|oefening|övning|ćwiczenie|упражнение|练习|練習"
)
_SEPARATORS = ' _-.,"“”„«»「」'


@dataclass(frozen=True)
class Named:
    """What a path says. ``people``: names of the student, the most reliable first."""

    exercises: tuple[str, ...]  # that the name may mean; best only one
    people: tuple[str, ...]
    layout: str  # flat | folder | nbgrader | moodle | canvas | blackboard | brightspace | gradescope
    number: str = ""  # the LMS's number of the person (Gradescope: of the submission)
    late: bool = False  # marked so by Canvas in the name
    version: tuple[int, int] = (0, 0)  # larger if handed in later: Canvas's id of the file, the "-2" in a name
    time: datetime | None = None  # Blackboard's, Brightspace's
    # flat: what stands before and behind the exercise, if something does on both sides; folder: those further inside
    sides: tuple[str, ...] = ()

    @property
    def person(self) -> str:
        """The name by which a reader knows the student."""
        return self.people[-1 if self.layout == "canvas" else 0]


def read_name(path: PurePosixPath, exercises: Sequence[str], inside: PurePosixPath | None = None) -> Named:
    """Read a path below the folder around all students (`without_wrapper`).

    Students choose the names of files, and of folders inside their own, so only the leftmost name counts.

    Args:
        inside: of a file in an archive that a student handed in, its path in there; ``path`` is then the archive's.

    Raises:
        ValueError: the name tells no student.
    """
    named = _read_outer(path, exercises)
    if inside is None:
        return named
    for part in (stem_of(inside.name), *reversed(inside.parts[:-1])):
        if found := _matches(part, exercises):
            return replace(named, exercises=tuple(found))
    return named


def without_wrapper(
    paths: Sequence[PurePosixPath], exercises: Sequence[str], stamped: bool = False
) -> list[PurePosixPath]:
    """The paths without the folders that enclose those of all students."""
    skip = wrapper(paths, exercises, stamped)
    inner = [PurePosixPath(*path.parts[skip:]) for path in paths]
    if inner and not any(_of_an_lms(p.parts[0]) for p in inner) and all(
        len(p.parts) > 1 and _of_an_lms(p.parts[1] if len(p.parts) > 2 else stem_of(p.name)) for p in inner
    ):  # fmt: skip
        return [PurePosixPath(*path.parts[1:]) for path in inner]  # several downloads, each in a folder of its own
    return inner


def wrapper(paths: Sequence[PurePosixPath], exercises: Sequence[str], stamped: bool = False) -> int:
    """How many folders enclose those of the students: 1 for ``submitted/alice/...`` or ``class/alice/...``.

    Args:
        stamped: nbgrader's timestamp.txt lies beside the notebooks, so there is a folder between them and the student.
    """
    parents = [path.parts[:-1] for path in paths]
    if not parents:
        return 0
    common = 0
    while all(len(p) > common and p[common] == parents[0][common] for p in parents):
        common += 1
    if "submitted" in parents[0][:common]:
        return parents[0].index("submitted") + 1
    if common and exercise_alone(parents[0][common - 1], exercises):  # ex01/alice/..., ex01/alice.ipynb, alice/ex01/...
        whose = [len(p.parts) - 1 > common or _exercise_in(stem_of(p.name), (), exercises)[1] for p in paths]
        return common - 1 if any(whose) and (len(paths) > 1 or common == 1) else max(common - 2, 0)
    if min(map(len, parents)) > common or _moodle_or_flat([p for p in paths if len(p.parts) - 1 == common], exercises):
        return common
    return max(common - 1 - stamped, 0)  # the innermost common folder belongs to the only student


def is_of_an_lms(path: PurePosixPath) -> bool:
    """Whether an LMS wrote some part of this path."""
    stem = stem_of(path.name)
    return any(map(_of_an_lms, (*path.parts[:-1], stem))) or any(
        pattern.match(stem) for pattern in (BLACKBOARD, BRIGHTSPACE, _CANVAS)
    )


def stem_of(name: str) -> str:
    """A file's name without ``.ipynb`` and what may have been added to it, else without its last suffix."""
    found = re.search(r"\.ipynb(?:[ (_.-].*)?$", name, re.IGNORECASE)
    stem = name[: found.start()] if found else PurePosixPath(name).stem
    copies = re.search(r"[ (_-].*", found[0]) if found else None  # "ex01.ipynb (1)"
    return stem + (copies[0] if copies and re.search(r"\d", copies[0]) else "")


def _read_outer(path: PurePosixPath, exercises: Sequence[str]) -> Named:
    parents, stem = path.parts[:-1], stem_of(path.name)
    moodle = _MOODLE.match(parents[0]) if parents else None
    if not parents and (found := _MOODLE.match(stem)) and found["file"]:
        moodle, stem = found, found["file"]
    if moodle is not None:
        told, _, again = _exercise_in(stem, parents[1:], exercises)
        return Named(told, (moodle["name"],), "moodle", moodle["id"], version=(0, again))
    if parents and (found := GRADESCOPE.match(parents[0])):
        told, _, again = _exercise_in(stem, parents[1:], exercises)
        return Named(told, (parents[0],), "gradescope", found[1], version=(0, again))
    if not parents and (found := BLACKBOARD.match(stem)):
        told, _, again = _exercise_in(found["file"] or "", (found["title"],), exercises)
        return Named(told, (found["login"],), "blackboard", version=(0, again), time=blackboard_time(found["time"]))
    if not parents and (found := BRIGHTSPACE.match(stem)):
        told, _, again = _exercise_in(found["file"], (), exercises)
        return Named(told, (found["name"],), "brightspace", version=(0, again), time=brightspace_time(found["time"]))
    canvas = _CANVAS_ANONYMOUS.match(stem) or _CANVAS.match(stem)
    if canvas and not parents and not _matches(canvas["name"], exercises):
        told, _, again = _exercise_in(canvas["file"], (), exercises)
        people = tuple(name for name in (canvas["id"], canvas["name"]) if name)
        return Named(told, people, "canvas", canvas["id"], bool(canvas["late"]), (int(canvas["file_id"]), again))
    if parents and (exercise := exercise_alone(parents[0], exercises)):  # ex01/alice/..., ex01/alice.ipynb
        named = _read_outer(PurePosixPath(*path.parts[1:]), exercises)
        return replace(named, exercises=named.exercises or (exercise,))
    told, sides, again = _exercise_in(stem, parents[1:], exercises)
    if parents:
        layout = "nbgrader" if len(parents) == 2 else "folder"
        return Named(told, (parents[0],), layout, version=(0, again), sides=parents[1:])
    rest = "_".join(sides)
    if not rest:
        raise ValueError("there is no student in the name")
    people = tuple(dict.fromkeys((rest, _PERHAPS_AGAIN.sub("", rest))))
    return Named(told, people, "flat", version=(0, again), sides=sides if len(sides) > 1 else ())


def _of_an_lms(part: str) -> bool:
    return bool(_MOODLE.match(part) or GRADESCOPE.match(part))


def _moodle_or_flat(paths: Sequence[PurePosixPath], exercises: Sequence[str]) -> bool:
    """Whether the names of these files, all in one folder, tell the students apart, so that the folder need not."""
    if any(_of_an_lms(part) for part in paths[0].parts[:-1]):
        return False
    told = set()
    for path in paths:
        try:
            named = read_name(PurePosixPath(path.name), exercises)
        except ValueError:
            return False
        if not named.exercises and named.layout == "flat":
            return False
        told.add(named.people)
    return len(told) > 1


def _exercise_in(
    stem: str, parents: Sequence[str], exercises: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """The exercises that are named, what stands on both sides of that, and the number of a copy."""
    stem, again = without_copy_marks(stem)
    for level, text in enumerate((stem, *reversed(parents))):
        matches = _matches(text, exercises)
        if not matches:
            continue
        if level:
            return tuple(matches), _sides(stem), again
        start, end = min(span[0] for span in matches.values()), max(span[1] for span in matches.values())
        after = stem[end:]
        if len(matches) == 1 and (found := _SURELY_AGAIN.fullmatch(after)) is not None:
            after, again = "", max(again, int(found[1]))
        before, after = without_inner_marks(stem[:start], after)
        return tuple(matches), _sides(before, after), again
    return (), _sides(stem), again


def _sides(*texts: str) -> tuple[str, ...]:
    return tuple(part for text in texts if (part := text.strip(_SEPARATORS)))


def exercise_alone(text: str, exercises: Sequence[str]) -> str:
    """The exercise whose name is all of ``text``; else empty."""
    matches = _matches(text, exercises)
    whole = [name for name, (start, end) in matches.items() if not _sides(text[:start], text[end:])]
    return whole[0] if len(whole) == len(matches) == 1 else ""


def _matches(text: str, exercises: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Exercises that ``text`` names, in full or as "ex01" or "Exercise 1", and where."""
    found: dict[str, tuple[int, int]] = {}
    for exercise in exercises:
        number = exercise.partition("_")[0]
        words = rf"(?:{_EXERCISE})[ _-]*0*{number.lstrip('ex').lstrip('0') or '0'}(?![0-9])"
        for pattern in (re.escape(exercise), rf"{re.escape(number)}(?!\d)", words):
            hit = re.search(rf"(?<![a-z0-9]){pattern}", text, re.IGNORECASE)
            if hit:
                found[exercise] = hit.span()
                break
    return found
