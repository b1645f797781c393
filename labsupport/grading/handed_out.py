"""The exercise as it was handed out, found beside a student's notebook or made from it, without torch or nbformat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labsupport.checks.lookup import exercise
from labsupport.checks.source import answered
from labsupport.grading.intake.cell_code import defined_functions
from labsupport.grading.intake.notebook import Cell, read_cells
from labsupport.grading.reports.results import one_line
from labsupport.grading.stubs import STUB, cut_solution


def pristine_of(path: Path, name: str) -> bytes:
    """The exercise as handed out: made from the course's solution if that is at hand, else the notebook with stubs.

    Only its code cells, with what grading reads of them.

    Raises:
        ValueError: neither can be read.
    """
    for folder in (path.resolve().parent.parent, Path.cwd()):
        solution = folder / "solutions" / f"{name}.ipynb"
        if solution.is_file():
            cells = [cell for cell in _read(solution) if "solution" not in cell.tags]
            return _frame(cells, lambda source: cut_solution(source, name))
    cells = [cell for cell in _read(path) if _is_of_the_course(cell)]
    if not any(
        "answer" in cell.tags for cell in cells
    ):  # an editor has dropped the tags: the checks know the functions
        needed = sorted({function for check in exercise(name).checks for function in check.needs})
        cells = [*cells, *(Cell((f"answer-{each}",), f"def {each}(): {STUB}", ("answer",)) for each in needed)]
    return _frame(cells, _stub_of)


def _read(path: Path) -> list[Cell]:
    try:
        return read_cells(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is not a readable notebook: {one_line(str(error))}") from None


def _frame(cells: list[Cell], stub: Any) -> bytes:
    frame = [
        {
            "cell_type": "code",
            "id": cell.ids[0] if cell.ids else f"cell-{position}",
            "metadata": {"tags": cell.tags},
            "source": stub(cell.source) if "answer" in cell.tags else cell.source,
        }
        for position, cell in enumerate(cells)
    ]
    return json.dumps({"cells": frame}).encode()


def _is_of_the_course(cell: Cell) -> bool:
    """By its tags, or its id, since what a student adds has neither."""
    return bool({"answer", "check"} & set(cell.tags)) or any(name.startswith(("setup", "look")) for name in cell.ids)


def _stub_of(answer: str) -> str:
    """A stub with the functions that an answer defines; the answer itself, if it is one."""
    defined = defined_functions(answer)
    if defined and not answered(answer):
        return answer
    return "\n".join(f"def {name}(*_, **__):\n    {STUB}" for name in sorted(defined)) or STUB
