"""The student whom a name means: the LMS's number decides where there is one, else the roster, else the name itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labsupport.grading.intake.exports import Attempt
from labsupport.grading.intake.names import Named
from labsupport.grading.intake.roster import Roster, Student
from labsupport.grading.intake.spelling import plain_key


@dataclass(frozen=True)
class Identity:
    student: str
    remark: str = ""  # what was guessed
    suffix: str = ""  # of the folder, where the name is not enough


class TestStudent(ValueError):
    """The file is of the student that Canvas makes for its "Student View"."""


def identify(named: Named, roster: Roster | None, attempts: Mapping[str, Attempt], namesakes: bool) -> Identity:
    """Whose file it is.

    Args:
        attempts: of Gradescope, by the number of the submission.
        namesakes: Moodle has several participants with this name in this assignment.

    Raises:
        ValueError: nobody or several people may be meant; the message says who.
    """
    people = named.people
    if named.layout == "gradescope":
        people = _submitter(named, attempts)
    if roster is None:
        if named.layout == "canvas":
            return Identity("_".join(reversed(people)))  # doejane_1234: the number makes it unique
        return Identity(people[0], suffix=f"_{named.number}" * namesakes)
    if named.layout == "canvas":
        return Identity(*_by_canvas_number(named, roster))
    if named.layout == "moodle" and roster.by_moodle_id:
        return Identity(_by_participant(named, roster).id)
    if namesakes and named.layout == "moodle":
        raise ValueError(f"several participants are called {named.person!r}: give the assignment's grading worksheet "
                         "as --roster, it has their numbers")  # fmt: skip
    if named.layout == "flat":
        return Identity(*_by_flat_name(named, roster))
    if named.layout in ("folder", "nbgrader"):
        return Identity(*_by_folder(named, roster))
    student = roster.find(_with_group_cut_off(people[0]) if named.layout == "moodle" else people)
    if student is None:
        raise ValueError(f"{(people or named.people)[0]!r} is not on the roster")
    return Identity(student.id)


def _by_canvas_number(named: Named, roster: Roster) -> tuple[str, str]:
    """A group's file has the group's name beside the number of a member."""
    numbered = {student.canvas_id: student for student in roster.students if student.canvas_id}
    student = numbered.get(named.number)
    if student is None:
        if roster.is_test_student(named.people[1:]):
            raise TestStudent("is of Canvas's own Test Student")
        rest = Roster([student for student in roster.students if not student.canvas_id])
        student = rest.find(named.people[1:]) or next((s for s in rest.students if s.id == named.number), None)
    if student is None:
        raise ValueError(f"{named.person!r}, Canvas's number {named.number}, is not on the roster")
    known = len(named.people) < 2 or not student.name or agrees(student, named.people[1])
    remark = f"{named.person!r} is taken for a group: its number {named.number} is that of {student.id}"
    return student.id, "" if known else remark


def _by_participant(named: Named, roster: Roster) -> Student:
    student = roster.by_moodle_id.get(str(int(named.number)))
    if student is None:
        raise ValueError(f"participant {named.number} ({named.person!r}) is not in the grading worksheet: is it that "
                         "of this assignment?")  # fmt: skip
    if _said(student, named.person):
        return student
    if any(_said(each, named.person) for each in roster.students):
        raise ValueError(f"participant {named.number} is {student.name or student.id!r} in the grading worksheet, but "
                         f"the name says {named.person!r}: is it that of this assignment?")  # fmt: skip
    return student


def _said(student: Student, person: str) -> bool:
    return bool(student.name) and any(agrees(student, name) for name in _with_group_cut_off(person))


def agrees(student: Student, name: str) -> bool:
    """Whether ``name`` is one of the student's, in any usual order and spelling."""
    return plain_key(name) in {plain_key(n) for n in student.names + student.turned_names} - {""}


def _with_group_cut_off(person: str) -> list[str]:
    """ "Team 3-Jane Doe" -> itself, "Jane Doe": Moodle puts the group in front."""
    parts = person.split("-")
    return ["-".join(parts[i:]) for i in range(len(parts)) if "-".join(parts[i:]).strip()]


def _by_flat_name(named: Named, roster: Roster) -> tuple[str, str]:
    """The whole rest of the name, else what stands on one side of the exercise: "alice_ex01_final"."""
    student = roster.find(named.people)
    if student is not None:
        return student.id, ""
    sides = {found.id for side in named.sides if (found := roster.find([side])) is not None}
    if len(sides) > 1:
        raise ValueError(f"{named.person!r} may be {' or '.join(sorted(sides))}")
    if not sides:
        raise ValueError(f"{named.person!r} is not on the roster")
    return sides.pop(), f"{named.person!r} is not on the roster, a part of it is"


def _by_folder(named: Named, roster: Roster) -> tuple[str, str]:
    """The outermost folder, or, where that is nobody's, the first one inside of it that is somebody's."""
    for folder in (named.person, *named.sides):
        if (student := roster.find([folder])) is not None:
            beside = f"{named.person!r} is not on the roster, {folder!r} in it is"
            return student.id, "" if folder == named.person else beside
    raise ValueError(f"{named.person!r} is not on the roster")


def _submitter(named: Named, attempts: Mapping[str, Attempt]) -> tuple[str, ...]:
    attempt = attempts.get(named.number)
    if attempt is None or not attempt.people or not all(attempt.people):
        raise ValueError("Gradescope's submission_metadata.yml must lie beside it: only that says whose it is")
    if len(attempt.people) > 1:
        who = ", ".join(people[-1] for people in attempt.people)
        raise ValueError(f"is a group's ({who}): give each of them a copy")
    return attempt.people[0]
