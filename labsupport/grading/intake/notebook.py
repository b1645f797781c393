"""Read a submission, an untrusted file from any editor, into the sources that will run.

Only the source of the answer cells is taken; outputs, metadata, check cells and everything else in the file are
ignored. An answer cell is recognised, in this order, by its id; by the id that Colab or nbgrader keep in the metadata
(both write old nbformat, without ids); by its tag `answer` and position, if there are as many as in the exercise; by
what it defines. The last also applies when the cell, or one of its functions, was left as it was and the student wrote
the functions in another cell (`placement`).

A student's own cells run only if an answer needs what they define or change (`helpers`). They run in the sandbox, so
nothing is given away, and a right answer stays right.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from labsupport.checks.source import syntax_error
from labsupport.grading.intake.cell_code import same_code
from labsupport.grading.intake.helpers import choose_helpers
from labsupport.grading.intake.placement import find_elsewhere

MAX_FILE_BYTES = 20 * 2**20
MAX_JSON_ITEMS = 2_000_000
MAX_SOURCE_BYTES = 2**20  # of all cells that run
MAX_CELLS = 5000
# Allowed (a student may call a check), but rarely accidental. It is easily hidden: only a hint for the class report.
_REACHES_IN = re.compile(
    r"\blabsupport\s*\.\s*checks\b|\blabsupport\s+import\b[^\n]*\bchecks\b|\bex0[1-7]\."
    r"|\bsys\.modules\b|\bget_objects\b"
)


class InvalidNotebook(ValueError):
    """The file cannot be graded; the message says why."""


@dataclass(frozen=True)
class Submission:
    """What runs, in order, and notes about the notebook."""

    cells: tuple[tuple[str, str], ...]  # (id, source): setup, the student's own that are needed, answers
    answers: dict[str, str]  # id -> source of the answer cells, the stub where the student has none
    attempted: bool
    notes: tuple[str, ...] = ()
    syntax_errors: dict[str, str] = field(default_factory=dict)  # id -> where and why Python cannot read an answer
    left_out: tuple[tuple[int, str], ...] = ()  # the student's own cells that do not run: number in the file, source
    own: dict[str, tuple[int, str]] = field(default_factory=dict)  # id -> those that do run


@dataclass(frozen=True)
class Cell:
    ids: tuple[str, ...]  # its own, then those in its metadata
    source: str
    tags: tuple[str, ...]


def read_file(path: Path) -> bytes:
    """The bytes of a regular file that is not too large. Links are not followed, pipes are not waited for.

    Raises:
        InvalidNotebook: it is anything else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = "it is a symbolic link" if path.is_symlink() else error.strerror
        raise InvalidNotebook(f"{why}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidNotebook("it is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidNotebook(
                f"it has {status.st_size >> 20} MiB, at most {MAX_FILE_BYTES >> 20} are read: clear the outputs"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def read_submission(data: bytes, pristine: bytes) -> Submission:
    """The submission in ``data`` for the exercise ``pristine``, both the bytes of a notebook.

    Raises:
        InvalidNotebook: ``data`` is not a notebook.
    """
    exercise = _read_exercise(pristine)
    theirs = read_cells(data)
    found, moved, notes = _find_answers(theirs, exercise)
    answers = {name: found.get(name, stub) for name, stub in exercise.stubs.items()}
    taken = {*found.values(), *moved}
    own = [(number, cell.source) for number, cell in enumerate(theirs, start=1)
           if cell.source not in taken and cell.source not in exercise.sources]  # fmt: skip
    helpers = choose_helpers(own, [*answers.values(), *moved], [*exercise.setup.values()])
    if ran := len(helpers.chosen) + len(helpers.after):
        notes.append(f"{ran} of your own cells ran too: your answers use names that they define")
    cells = [*exercise.setup.items(), *((f"own-{i}", source) for i, source in enumerate(helpers.chosen))]
    cells += answers.items()
    cells += [(f"moved-{i}", source) for i, source in enumerate(moved)]  # last: what the answer cell left as a stub
    cells += [(f"after-{i}", source) for i, source in enumerate(helpers.after)]
    if sum(len(source) for _, source in cells) > MAX_SOURCE_BYTES:
        raise InvalidNotebook(f"its answers are longer than {MAX_SOURCE_BYTES >> 10} KiB")
    numbers = {source: number for number, source in own}
    ran_too = {name: (numbers[source], source) for name, source in cells if name.startswith(("own-", "after-"))}
    written = [source for name, source in cells if name not in exercise.setup]
    if any(_REACHES_IN.search(source) for source in written):
        notes.append("your code names the course's checks, or Python's table of modules; a person should read it")
    attempted = any(not same_code(source, exercise.stubs[name]) for name, source in answers.items())
    broken = {name: problem for name, source in cells[len(exercise.setup) :] if (problem := syntax_error(source))}
    return Submission(tuple(cells), answers, attempted or bool(moved), tuple(notes), broken, helpers.left_out, ran_too)


def read_cells(data: bytes) -> list[Cell]:
    """The code cells of a notebook of nbformat 3 or 4."""
    if not data.strip():
        raise InvalidNotebook("the file is empty")
    if data.count(b"[") + data.count(b"{") + data.count(b",") > MAX_JSON_ITEMS:
        raise InvalidNotebook(f"it holds more than {MAX_JSON_ITEMS:,} values")
    try:
        notebook = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidNotebook("it is not in UTF-8") from None
    except RecursionError:
        raise InvalidNotebook("it is nested too deeply") from None
    except ValueError as error:
        raise InvalidNotebook(f"it is not JSON ({error})") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if cells is None and isinstance(notebook, dict) and isinstance(notebook.get("worksheets"), list):  # nbformat 3
        sheets = [sheet for sheet in notebook["worksheets"] if isinstance(sheet, dict)]
        cells = [cell for sheet in sheets if isinstance(sheet.get("cells"), list) for cell in sheet["cells"]]
    if not isinstance(cells, list):
        raise InvalidNotebook("it has no list of cells")
    if len(cells) > MAX_CELLS:
        raise InvalidNotebook(f"it has {len(cells)} cells, at most {MAX_CELLS} are read")
    return [read for cell in cells if isinstance(cell, dict) and (read := _read_cell(cell)) is not None]


def _read_cell(cell: dict[str, Any]) -> Cell | None:
    if cell.get("cell_type") != "code":
        return None
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        return None
    metadata = cell["metadata"] if isinstance(cell.get("metadata"), dict) else {}
    nbgrader = metadata["nbgrader"] if isinstance(metadata.get("nbgrader"), dict) else {}
    ids = (cell.get("id"), metadata.get("id"), nbgrader.get("grade_id"))
    tags = metadata["tags"] if isinstance(metadata.get("tags"), list) else []
    return Cell(
        tuple(name for name in ids if isinstance(name, str)), source, tuple(tag for tag in tags if isinstance(tag, str))
    )


@dataclass(frozen=True)
class _Exercise:
    setup: dict[str, str]  # id -> source of the cells that answers rely on
    stubs: dict[str, str]
    sources: frozenset[str]  # of all code cells


@lru_cache(maxsize=32)
def _read_exercise(pristine: bytes) -> _Exercise:
    cells = read_cells(pristine)
    stubs = {cell.ids[0]: cell.source for cell in cells if "answer" in cell.tags}
    # answers rely neither on check cells nor on cells that only show something (their output is not compared)
    setup = {c.ids[0]: c.source for c in cells if not {"answer", "check", "nbval-ignore-output"} & set(c.tags)}
    return _Exercise(setup, stubs, frozenset(cell.source for cell in cells))


def _find_answers(theirs: list[Cell], exercise: _Exercise) -> tuple[dict[str, str], list[str], list[str]]:
    """Id of an answer cell -> what the student wrote in it; sources of other cells that run too; and notes."""
    found: dict[str, str] = {}
    places: dict[str, int] = {}  # id -> which of their cells it is
    notes = []
    tagged = [index for index, cell in enumerate(theirs) if "answer" in cell.tags]
    nameless = not any(set(cell.ids) & set(exercise.stubs) for cell in theirs)
    by_position = dict(zip(exercise.stubs, tagged, strict=False)) if len(tagged) == len(exercise.stubs) else {}
    for name, stub in exercise.stubs.items():
        same = [index for index, cell in enumerate(theirs) if name in cell.ids]
        if len({theirs[index].source for index in same}) > 1:
            notes.append(f"{len(same)} cells have the id {name}: the last one that differs from the stub counts")
        if not same and nameless and by_position:
            same = [by_position[name]]
        written = [index for index in same if not same_code(theirs[index].source, stub)]
        if written or same:
            places[name] = (written or same)[-1]
            found[name] = theirs[places[name]].source
    moved: list[str] = []
    sources = [cell.source for cell in theirs]
    given = [index for index, cell in enumerate(theirs) if _is_given(cell, exercise)]
    later = list(places.values())
    for name, stub in exercise.stubs.items():
        later = later[1:] if name in places else later
        elsewhere = find_elsewhere(sources, given, stub, places.get(name), places.values(), later)
        notes += elsewhere.notes
        if elsewhere.whole is not None:
            found[name] = sources[elsewhere.whole]
        elif name not in places and not elsewhere.also:
            notes.append(f"there is no answer cell {name}")
        moved += [sources[index] for index in elsewhere.also if sources[index] not in moved]
    return found, moved, notes


def _is_given(cell: Cell, exercise: _Exercise) -> bool:
    """Whether it is a cell of the exercise as it was given out."""
    return cell.source in exercise.sources or any(same_code(cell.source, exercise.stubs.get(i, "")) for i in cell.ids)
