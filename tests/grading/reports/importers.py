"""Canvas and Moodle as they import grades, small: what their sources do with each row and cell of a file.

Written after lib/gradebook_importer.rb of Canvas and grade/import/csv/classes/load_data.php of Moodle. State in, state
out: {(person, assignment): cell}, "" where there is no grade.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path


class Aborted(Exception):
    """The import ended; nothing of the file counts."""


@dataclass(frozen=True)
class User:
    id: str
    name: str
    sis: str = ""
    login: str = ""
    email: str = ""


def _read(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@dataclass
class Canvas:
    users: list[User]
    assignments: dict[str, str]  # id -> title
    points: dict[str, str]
    grades: dict[tuple[str, str], str]

    def upload(self, path: Path) -> None:
        header, *rows = _read(path)
        if not ("Student" in header[0] and "ID" in header[1] and len(header) > 3):
            raise Aborted("invalid header row")
        first = 3 + 2 * ("SIS User ID" in header[2] and "SIS Login ID" in header[3])
        if "Section" not in header[first - 1]:
            raise Aborted("invalid header row")
        columns = {i: self._assignment(header[i]) for i in range(first, len(header))}
        for row in rows:
            if all(re.fullmatch(r"\s*(Muted|Manual Posting.*)?\s*", cell, re.IGNORECASE) for cell in row):
                continue
            if "Points Possible" in row[0]:
                self.points |= {assignment: row[i] for i, assignment in columns.items() if row[i]}
                continue
            user = self._user(row)
            for i, assignment in columns.items():
                new, old = row[i].strip(), self.grades.get((user.id, assignment), "")
                if new != old and not ({new, old} <= {"", "-"}):
                    self.grades[user.id, assignment] = new  # an empty cell deletes

    def _assignment(self, column: str) -> str:
        found = re.fullmatch(r"(.*)\s\((\d+)\)", column, re.DOTALL)
        if found and found[2] in self.assignments:
            return found[2]
        for number, title in self.assignments.items():
            if title == column:
                return number
        raise Aborted(f"Canvas asks whether to make a new assignment {column!r}")

    def _user(self, row: list[str]) -> User:
        for matches in (
            lambda u: row[1] and u.id == row[1],
            lambda u: row[2] and u.sis == row[2],
            lambda u: row[3] and u.login == row[3],
            lambda u: u.name == row[0],
        ):
            if found := [user for user in self.users if matches(user)]:
                return found[0]
        raise Aborted(f"Canvas asks who {row[0]!r} is")


@dataclass
class Moodle:
    users: list[User]
    grades: dict[tuple[str, str], str]
    feedback: dict[tuple[str, str], str]

    def upload(self, path: Path, mapfrom: str, old_version: bool = False) -> None:
        """``mapfrom``: the column that identifies people. Columns of grades are mapped by their own names.

        In the old version the person of the row before stays in charge where the identifying cell is empty.
        """
        header, *rows = _read(path)
        field = {"Username": "login", "ID number": "sis", "Email address": "email"}[mapfrom]
        student, new_grades, new_feedback = None, {}, {}
        for row in rows:
            if len(row) <= 1:
                continue
            value = row[header.index(mapfrom)].strip()
            if value:
                found = [user for user in self.users if getattr(user, field) == value]
                if len(found) != 1:
                    raise Aborted(f"user mapping error: {value!r}")
                student = found[0].id
            elif not old_version:
                student = None
            if student is None:
                raise Aborted("user not found")
            for i, column in enumerate(header):
                if column in ("Full name", "Username", "ID number", "Email address"):
                    continue
                if column.endswith(" (feedback)"):
                    new_feedback[student, column.removesuffix(" (feedback)")] = row[i]
                elif row[i].strip() in ("", "-"):
                    new_grades[student, column] = ""  # null: deletes
                elif re.fullmatch(r"-?\d+([.,]\d+)?", row[i].strip()):
                    new_grades[student, column] = row[i].strip()
                else:
                    raise Aborted(f"bad grade {row[i]!r}")
        self.grades |= new_grades
        self.feedback |= new_feedback
