"""Who is in the class, from your own CSV or an export of Canvas or Moodle, and which student a name means.

A file name holds whatever the LMS makes of a name ("doejane", "Jane Doe", a login). A roster maps all of these to one
student id, which names the folder of the submissions and the row of the grades.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from labsupport.grading.intake.encodings import decoded_text
from labsupport.grading.intake.roster_columns import fields_of, participant_number
from labsupport.grading.intake.spelling import loose_key, name_key, plain_key

_TEST_STUDENT = ("Student, Test", "Test Student")


@dataclass(frozen=True)
class Student:
    """One person. `id` names folders and rows; the LMS needs the other fields, which are empty where unknown."""

    id: str
    name: str = ""
    email: str = ""
    login: str = ""
    sis_id: str = ""  # Moodle's "ID number", Canvas's "SIS User ID"
    canvas_id: str = ""
    section: str = ""
    moodle_id: str = ""  # of the participant in one assignment: the grading worksheet's "Identifier"
    cells: tuple[str, ...] = field(default=(), compare=False, repr=False)  # the person's line in the file

    @property
    def names(self) -> list[str]:
        """Names by which a file may mean this person."""
        return [self.id, self.name, self.email, self.login, self.sis_id, self.canvas_id]

    @property
    def turned_names(self) -> list[str]:
        """ "Jane Doe" -> "Doe Jane"."""
        words = self.name.replace(",", " ").split()
        return [" ".join(words[i:] + words[:i]) for i in range(1, len(words))]


@dataclass
class Roster:
    students: list[Student]
    columns: tuple[str, ...] = ()  # the file's header; Canvas's includes the assignments
    is_canvas: bool = False
    others: tuple[tuple[str, ...], ...] = ()  # lines of the file that are no student's: Points Possible, Test Student

    @cached_property
    def by_moodle_id(self) -> dict[str, Student]:
        return {student.moodle_id: student for student in self.students if student.moodle_id}

    @cached_property
    def _comparisons(self) -> list[tuple[Callable[[str], str], dict[str, list[Student]]]]:
        """Ways to compare names, the strictest first; in each, whom a name means."""
        tables: list[tuple[Callable[[str], str], dict[str, list[Student]]]] = []
        for key in (name_key, loose_key, plain_key):
            table: dict[str, list[Student]] = defaultdict(list)
            for student in self.students:
                for name in {key(n) for n in student.names + student.turned_names} - {""}:
                    table[name].append(student)
            tables.append((key, table))
        return tables

    def find(self, names: Iterable[str]) -> Student | None:
        """The student meant by the first of these ``names`` that is on the roster, or None.

        Raises:
            ValueError: that name means several people.
        """
        for name in filter(None, names):
            for key, table in self._comparisons:
                found = table.get(key(name), [])
                if len(found) > 1:
                    raise ValueError(f"{name!r} may be {' or '.join(sorted(student.id for student in found))}")
                if found:
                    return found[0]
        return None

    def is_test_student(self, names: Iterable[str]) -> bool:
        """Whether this is the student that Canvas makes for "Student View"."""
        keys = {loose_key(cell) for line in self.others if _is_test_student(line) for cell in line[:2]} - {""}
        return any(loose_key(name) in keys for name in names if name)


def read_roster(path: Path) -> Roster:
    """Read a CSV with a header: `student` (and name, email, login, sis_id, canvas_id, section), or an LMS's export.

    Cells may be separated by commas, semicolons or tabs.

    Raises:
        ValueError: its columns do not identify anybody, or two rows have the same student id.
    """
    header, *rows = _read_table(path)
    canvas = plain_key(header[0]) in ("student", "lastname") and "ID" in (cell.strip() for cell in header)
    columns = fields_of(header, rows)
    if canvas and plain_key(header[0]) == "student":
        columns[0] = "name"  # Canvas's "Student" is "Doe, Jane"
    people, others = [], []
    for row in rows:
        cells = {columns[i]: cell.strip() for i, cell in enumerate(row) if i in columns}
        person = None if canvas and (_is_test_student(row) or "Points Possible" in row[0]) else _student(cells)
        if person is None and any(row):
            others.append(tuple(row))
        elif person is not None:
            people.append(replace(person, cells=tuple(row)))
    students = _told_apart(people) if "student" not in columns.values() else people
    counts = Counter(name_key(student.id) for student in students)
    doubled = sorted({student.id for student in students if counts[name_key(student.id)] > 1})
    if doubled:
        raise ValueError(f"--roster must name every student once, {path} has several of {', '.join(doubled)}")
    if not students:
        raise ValueError(f"--roster needs a column student (or name, login, email), {path} has {', '.join(header)}")
    return Roster(students, tuple(header), canvas, tuple(others))


def _read_table(path: Path) -> list[list[str]]:
    data = path.read_bytes()
    try:
        text = decoded_text(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"--roster must be UTF-8, {path} is not: {error}") from None
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=lambda separator: len(next(csv.reader([first], delimiter=separator), [])))
    hint = re.fullmatch(r"(?i)sep=(.)", first.strip("\r\n\"'"))  # for Excel
    delimiter = hint[1] if hint else delimiter
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row][bool(hint) :]
    if not rows:
        raise ValueError(f"--roster must have a header, {path} is empty")
    return rows


def _student(fields: dict[str, str]) -> Student | None:
    first, last = fields.pop("first_name", ""), fields.pop("last_name", "")
    name = fields.get("name") or f"{first} {last}".strip()
    moodle_id = participant_number(fields.get("moodle_id", ""))
    given = fields.pop("student", "")
    identity = (
        given or fields.get("login") or fields.get("sis_id") or fields.get("email", "").partition("@")[0] or name
        or fields.get("moodle_id", "")
    )  # fmt: skip
    if not identity:
        return None
    email, login, sis_id, canvas_id, section = (
        fields.get(field, "") for field in ("email", "login", "sis_id", "canvas_id", "section")
    )
    return Student(identity, name, email, login, sis_id, canvas_id, section, moodle_id)


def _told_apart(people: Sequence[Student]) -> list[Student]:
    """The same people, with longer ids for those whose ids are alike: the e-mail address, the participant's number."""
    counts = Counter(name_key(person.id) for person in people)
    return [
        person
        if counts[name_key(person.id)] == 1
        else replace(person, id=person.email or f"{person.id}_{person.moodle_id}".rstrip("_"))
        for person in people
    ]


def _is_test_student(line: Sequence[str]) -> bool:
    """Canvas calls it "Student, Test" in English, and gives it a login of 40 hexadecimal digits in every language."""
    named = bool(line) and line[0].strip() in _TEST_STUDENT and not (len(line) > 2 and line[2].strip())
    return named or any(re.fullmatch(r"[0-9a-f]{40}", cell.strip()) for cell in line[2:5])
