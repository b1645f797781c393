"""What the folders are called: one for all spellings of a name, and, among namesakes, one for each of Moodle's numbers.

"Alice" and "alice" are one student, whose folder has the spelling that is first in the alphabet, whichever came first.
"Ann Lee_7" and "Ann Lee_8" are two. Folders that are there are renamed, and files moved, when more becomes known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from labsupport.grading.intake.folder_name import folder_of, name_of
from labsupport.grading.intake.history import Entry
from labsupport.grading.intake.spelling import name_key

Target = tuple[str, str]  # `Entry.target`


@dataclass
class Folders:
    """Folders below ``out`` as they are, and as they will be: first `renamed` is done, then `moved`."""

    out: Path
    spellings: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # name's key -> as written
    there: dict[tuple[str, str], str] = field(default_factory=dict)  # key of a name, suffix -> folder
    renamed: dict[str, str] = field(default_factory=dict)  # new folder -> as it is now
    moved: dict[str, str] = field(default_factory=dict)  # new path -> path after renaming

    def student(self, name: str, suffix: str = "") -> str:
        return min(self.spellings[name_key(name)]) + suffix

    def rename(self) -> None:
        """To be called when all `spellings` are known."""
        for (key, suffix), folder in self.there.items():
            new = folder_of(min(self.spellings[key]) + suffix)
            if new != folder and new not in self.renamed and not (self.out / new).exists():
                self.renamed[new] = folder

    def now(self, path: str) -> Path:
        """Where the file is that will be at ``path``."""
        folder, _, name = self.moved.get(path, path).partition("/")
        return self.out / self.renamed.get(folder, folder) / name


def read_folders(out: Path, there: Mapping[Target, Entry]) -> Folders:
    folders = Folders(out)
    long = {entry.folder: entry.student for entry in there.values()}
    suffixes = {name_key(entry.student): suffix_of(entry) for entry in there.values()}
    for path in sorted(out.glob("*/")):
        student = name_of(path.name, long)
        suffix = suffixes.get(name_key(student), "")
        name = student.removesuffix(suffix)
        folders.spellings[name_key(name)].add(name)
        folders.there.setdefault((name_key(name), suffix), path.name)
    return folders


def suffix_of(entry: Entry) -> str:
    """Moodle's number, if it is a part of the folder."""
    suffix = f"_{entry.number}"
    return suffix if entry.number and entry.student.endswith(suffix) else ""


def move_namesakes(
    folders: Folders, there: dict[Target, Entry], numbers: Mapping[Target, Collection[str]], run: str
) -> list[Entry]:
    """Files of a person whose namesake was not known when they were collected go to a folder with the number.

    Args:
        there: is changed to what is there afterwards.
        numbers: Moodle's numbers for an exercise and the key of a name.

    Returns:
        a row for each file that moves.
    """
    rows = []
    for target, entry in list(there.items()):
        if not entry.number or suffix_of(entry) or len(numbers[entry.exercise, target[0]]) < 2:
            continue
        name = folders.student(entry.student)
        student = f"{name}_{entry.number}"
        before, after = (f"{folder_of(each)}/{entry.exercise}.ipynb" for each in (name, student))
        if folders.now(before).is_file() and not folders.now(after).exists():
            why = f"{name!r} is the name of several participants"
            row = replace(
                entry, run=run, source=before, student=student, folder=folder_of(student), decision="moved", reason=why
            )
            rows.append(row)
            folders.moved[after] = before
            there[row.target] = row
            del there[target]
    return rows
