"""Whose file is this, and for which exercise? Its path tells.

    ex01_int8_symmetric_alice.ipynb, alice_ex01.ipynb         flat
    alice/ex01_int8_symmetric.ipynb                           a folder per student
    submitted/alice/week1/ex01_int8_symmetric.ipynb           nbgrader
    Jane Doe_12345_assignsubmission_file_/ex01.ipynb          Moodle, "Download all submissions", as folders or not
    doejane_LATE_1234_5678_ex01_int8_symmetric-2.ipynb        Canvas, "Download submissions"

Moodle's number identifies the participant within one assignment; Canvas's first number identifies the user in all
courses, its second the file (mod/assign/locallib.php of Moodle, lib/content_zipper.rb of Canvas). LMSs and browsers add
a suffix to the name of a file that is handed in or downloaded again: "-2", " (1)", "-Copy1".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

_MOODLE = re.compile(r"^(?P<name>[^_]+)_(?P<id>\d+)_assignsubmission_\w+?(?:_(?P<file>.*))?$")
_CANVAS = re.compile(r"^(?P<name>.+?)_(?P<late>LATE_)?(?P<id>\d+)_(?P<file_id>\d+)_(?P<file>.+)$")
_CANVAS_ANONYMOUS = re.compile(r"^(?P<name>)(?P<late>LATE_)?(?P<id>anon_\w{5})_(?P<file_id>\d+)_(?P<file>.+)$")
_AGAIN = re.compile(r"(?:[ _-]*\((\d{1,3})\)|-Copy(\d{0,3}))$", re.IGNORECASE)
_PERHAPS_AGAIN = re.compile(r"(?:-|[ _-]+v)(\d{1,3})$", re.IGNORECASE)  # or part of a name: "group-3"
_COPY_OF = re.compile(r"^copy[ _]of[ _]", re.IGNORECASE)  # Colab and Drive


@dataclass(frozen=True)
class Named:
    """What a path says. ``people``: names of the student, the most reliable first."""

    exercise: str
    people: tuple[str, ...]
    layout: str  # flat | folder | nbgrader | moodle | canvas
    number: str = ""  # Moodle's or Canvas's number of the person
    late: bool = False  # marked so by Canvas in the name
    version: tuple[int, int] = (0, 0)  # larger if handed in later: Canvas's id of the file, the "-2" in a name

    @property
    def person(self) -> str:
        """The name by which a reader knows the student."""
        return self.people[-1 if self.layout == "canvas" else 0]


def read_name(path: PurePosixPath, exercises: Sequence[str]) -> Named:
    """Read a path below the folder around all students (`wrapper`).

    Students choose the names of files, and of folders inside their own, so only the leftmost name counts.

    Raises:
        ValueError: the name tells no exercise, or several, or no student.
    """
    parents, stem = path.parts[:-1], path.stem
    moodle = next((found for part in parents if (found := _MOODLE.match(part))), None)
    if moodle is None and (found := _MOODLE.match(stem)) and found["file"]:
        moodle, stem = found, found["file"]
    if moodle is not None:
        exercise, _, again = _exercise_in(stem, (), exercises)
        return Named(exercise, (moodle["name"],), "moodle", moodle["id"], version=(0, again))
    canvas = _CANVAS_ANONYMOUS.match(stem) or _CANVAS.match(stem)
    if canvas and not parents and _matches(canvas["file"], exercises) and not _matches(canvas["name"], exercises):
        exercise, _, again = _exercise_in(canvas["file"], (), exercises)
        people = tuple(name for name in (canvas["id"], canvas["name"]) if name)
        return Named(exercise, people, "canvas", canvas["id"], bool(canvas["late"]), (int(canvas["file_id"]), again))
    exercise, rest, again = _exercise_in(stem, parents[1:], exercises)
    if parents:
        return Named(exercise, (parents[0],), "nbgrader" if len(parents) == 2 else "folder", version=(0, again))
    if not rest:
        raise ValueError("there is no student in the name")
    return Named(exercise, (rest, _PERHAPS_AGAIN.sub("", rest)), "flat", version=(0, again))


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
    if min(map(len, parents)) > common or _moodle_or_flat([p for p in paths if len(p.parts) - 1 == common], exercises):
        return common
    return max(common - 1 - stamped, 0)  # the innermost common folder belongs to the only student


def _moodle_or_flat(paths: Sequence[PurePosixPath], exercises: Sequence[str]) -> bool:
    """Whether the names of these files, all in one folder, tell the students apart, so that the folder need not."""
    if any(_MOODLE.match(part) for part in paths[0].parts[:-1]):
        return False
    told = set()
    for path in paths:
        try:
            told.add(read_name(PurePosixPath(path.name), exercises).people)
        except ValueError:
            return False
    return len(told) > 1


def _exercise_in(stem: str, parents: Sequence[str], exercises: Sequence[str]) -> tuple[str, str, int]:
    """The exercise, the rest of the stem, and the number of a file that was handed in again."""
    stem = _COPY_OF.sub("", stem)
    again = 0
    while found := _AGAIN.search(stem):
        stem, again = stem[: found.start()], max(again, int(next(filter(None, found.groups()), "1")))
    for level, text in enumerate((stem, *reversed(parents))):
        matches = _matches(text, exercises)
        if len(matches) > 1:
            raise ValueError(f"the name may mean {' or '.join(sorted(matches))}")
        for exercise, (start, end) in matches.items():
            if level:
                return exercise, stem.strip(" _-."), again
            after = stem[end:]
            if (found := _PERHAPS_AGAIN.fullmatch(after)) is not None:  # right after the exercise it is not a name
                after, again = "", max(again, int(found[1]))
            rest = "_".join(part for side in (stem[:start], after) if (part := side.strip(" _-.")))
            return exercise, rest, again
    raise ValueError("there is no exercise in the name")


def _matches(text: str, exercises: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Exercises that ``text`` names, in full or as "ex01", and where."""
    found: dict[str, tuple[int, int]] = {}
    for exercise in exercises:
        number = exercise.partition("_")[0]
        for pattern in (re.escape(exercise), rf"{re.escape(number)}(?!\d)"):
            hit = re.search(rf"(?<![a-z0-9]){pattern}", text, re.IGNORECASE)
            if hit:
                found[exercise] = hit.span()
                break
    return found
