"""Who is in the class, from your own CSV or an export of Canvas or Moodle, and which student a name means.

A file name holds whatever the LMS makes of a name ("doejane", "Jane Doe", a login). A roster maps all of these to one
student id, which names the folder of the submissions and the row of the grades.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# Column of the file (squashed) -> field. Canvas: gradebook export. Moodle: participants or grades export.
_COLUMNS = {
    "student": "student",
    "name": "name",
    "fullname": "name",
    "firstname": "first_name",
    "lastname": "last_name",
    "surname": "last_name",
    "email": "email",
    "emailaddress": "email",
    "username": "login",
    "login": "login",
    "sisloginid": "login",
    "idnumber": "sis_id",
    "sisid": "sis_id",
    "sisuserid": "sis_id",
    "id": "canvas_id",
    "canvasid": "canvas_id",
    "section": "section",
}
_MAX_NAME = 100  # characters of a folder's name


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

    @property
    def aliases(self) -> set[str]:
        """The squashed names by which a file name may mean this person."""
        words = self.name.replace(",", " ").split()
        turned = [" ".join(words[i:] + words[:i]) for i in range(1, len(words))]  # "Jane Doe" -> "Doe Jane"
        every = [self.id, self.name, self.email, self.login, self.sis_id, self.canvas_id, *turned]
        return {squash(alias) for alias in every} - {""}


@dataclass
class Roster:
    students: list[Student]
    columns: tuple[str, ...] = ()  # the file's header; Canvas's includes the assignments
    _by_alias: dict[str, list[Student]] = field(default_factory=lambda: defaultdict(list), repr=False)

    def __post_init__(self) -> None:
        for student in self.students:
            for alias in student.aliases:
                self._by_alias[alias].append(student)

    def find(self, names: Iterable[str]) -> Student | None:
        """The student meant by the first of these ``names`` that is on the roster, or None.

        Raises:
            ValueError: that name means several people.
        """
        for name in names:
            found = self._by_alias.get(squash(name), []) if name else []
            if len(found) > 1:
                raise ValueError(f"{name!r} may be {' or '.join(sorted(student.id for student in found))}")
            if found:
                return found[0]
        return None

    def column_of(self, exercise: str) -> str:
        """The file's column for an exercise, such as "Exercise 1: ex01 (4711)", else the exercise's own name."""
        short = exercise.partition("_")[0]
        hits = [column for column in self.columns if re.search(rf"(?i)(?<![a-z0-9]){re.escape(short)}(?!\d)", column)]
        return hits[0] if len(hits) == 1 else exercise


def read_roster(path: Path) -> Roster:
    """Read a CSV with a header: `student` (and name, email, login, sis_id, canvas_id, section), or an LMS's export.

    Raises:
        ValueError: its columns do not identify anybody, or two rows have the same student id.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--roster must be UTF-8, {path} is not: {error}") from None
    delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    rows = list(csv.reader(text.splitlines(), delimiter=delimiter))
    if not rows:
        raise ValueError(f"--roster must have a header, {path} is empty")
    canvas = squash(rows[0][0]) == "student" and "ID" in (cell.strip() for cell in rows[0])
    columns = {i: _COLUMNS[squash(cell)] for i, cell in enumerate(rows[0]) if squash(cell) in _COLUMNS}
    if canvas:
        columns[0] = "name"  # Canvas's "Student" is "Doe, Jane"
    people = [_student({columns[i]: cell.strip() for i, cell in enumerate(row) if i in columns}) for row in rows[1:]]
    students = [person for person in people if person is not None]
    ids = [student.id.casefold() for student in students]
    doubled = sorted({student.id for student in students if ids.count(student.id.casefold()) > 1})
    if doubled:
        raise ValueError(f"--roster must name every student once, {path} has several of {', '.join(doubled)}")
    if not students:
        raise ValueError(f"--roster needs a column student (or name, login, email), {path} has {', '.join(rows[0])}")
    return Roster(students, tuple(rows[0]))


def _student(fields: dict[str, str]) -> Student | None:
    first, last = fields.pop("first_name", ""), fields.pop("last_name", "")
    name = fields.get("name") or f"{first} {last}".strip()
    if name.startswith("Points Possible") or name == "Student, Test":  # rows that Canvas adds
        return None
    given = fields.pop("student", "")
    identity = given or fields.get("login") or fields.get("sis_id") or fields.get("email", "").partition("@")[0] or name
    student_id = safe_name(identity)
    return Student(student_id, **{**fields, "name": name}) if student_id else None


def squash(text: str) -> str:
    """``text`` without accents, case, spaces and punctuation, to compare names taken from file names."""
    decomposed = unicodedata.normalize("NFKD", text)
    return re.sub(r"[\W_]+", "", "".join(c for c in decomposed if not unicodedata.combining(c)).casefold())


def safe_name(text: str) -> str:
    """``text`` as a folder name for any system: letters, digits and `_ . @ -`, with a letter or digit in front.

    Empty if nothing is left.
    """
    kept = re.sub(r"[^\w.@-]+", "_", unicodedata.normalize("NFC", text.strip()))
    name = re.sub(r"_{2,}", "_", kept).lstrip("._-@").rstrip("._")[:_MAX_NAME].rstrip("._")
    return f"{name}_" if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name) else name
