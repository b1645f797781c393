"""From a solution notebook to the exercise that students get: what is cut, what is kept.

A cell is treated by its tags:

- `answer`: the solution is cut. It stands between the lines `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's
  markers). Inside a function the region becomes `raise NotImplementedError`; at the top level, where helpers of the
  solution stand, it is removed without a trace. Signature, docstring and all code outside of a region are kept. A cell
  whose stub would not parse or would not raise NotImplementedError is an error: a forgotten marker leaks nothing.
- `check`: kept without its output, which would be a success above an empty answer. In the solution it must have run
  without an error, and it must have the tag `nbval-ignore-output`: nbval then asks no more than that it raises nothing.
- `solution`: left out.
- anything else: kept without outputs; a solution marker in it is an error.

Cell ids and metadata are kept, except what editors write on each run. The same solution gives the same bytes.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = "raise NotImplementedError"

_KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}
_NOTEBOOK_NOISE = {"widgets", "signature", "colab", "vscode", "toc", "varInspector", "accelerator"}
_CELL_NOISE = {
    "execution",
    "ExecuteTime",
    "executionInfo",
    "outputId",
    "colab",
    "collapsed",
    "scrolled",
    "jupyter",
    "trusted",
    "vscode",
}

Notebook: TypeAlias = Any  # nbformat.NotebookNode, a dict whose keys are also attributes


def make_exercise(solution: Notebook, name: str = "notebook") -> Notebook:
    """The exercise for a solution, which is not changed.

    Raises:
        ValueError: an answer cell yields no stub, or a check cell has no stored output or lacks its second tag.
    """
    import nbformat  # takes seconds, which `labsupport check` need not wait for

    exercise = copy.deepcopy(solution)
    cells = []
    for cell in exercise.cells:
        where, tags = f"{name}, cell {cell.id}", cell.metadata.get("tags", [])
        if "solution" in tags:
            continue
        if "answer" in tags:
            cell.source = cut_solution(cell.source, where)
        elif BEGIN in cell.source or END in cell.source:
            raise ValueError(f"{where}: has a solution marker but lacks the tag `answer`")
        if "check" in tags:
            _require_good_output(cell, where)
            if "nbval-ignore-output" not in tags:
                raise ValueError(f"{where}: a check cell needs the tag `nbval-ignore-output`")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.metadata = {key: value for key, value in cell.metadata.items() if key not in _CELL_NOISE}
        cells.append(cell)
    exercise.cells = cells
    metadata = {key: value for key, value in exercise.metadata.items() if key not in _NOTEBOOK_NOISE}
    exercise.metadata = nbformat.from_dict({**metadata, "kernelspec": _KERNELSPEC, "language_info": _LANGUAGE})
    exercise.nbformat, exercise.nbformat_minor = 4, 5
    return exercise


def cut_solution(source: str, where: str = "cell") -> str:
    """The stub of an answer cell's source (module docstring).

    Raises:
        ValueError: the markers do not pair up, the stub does not parse, or does not raise NotImplementedError.
    """
    kept: list[str] = []
    inside = False
    for line in source.splitlines():
        marker, indent = line.strip(), line[: len(line) - len(line.lstrip())]
        if marker == (END if inside else BEGIN):
            inside = not inside
            if inside and indent:
                kept.append(indent + STUB)
        elif marker in (BEGIN, END):
            raise ValueError(f"{where}: {marker!r} stands where the other marker belongs")
        elif not inside:
            kept.append(line)
    if inside:
        raise ValueError(f"{where}: {BEGIN!r} has no {END!r}")
    stub = "\n".join(kept).strip("\n")
    try:
        tree = ast.parse(stub)
    except SyntaxError as error:
        raise ValueError(f"{where}: without the solution the cell does not parse: {error}") from None
    if not any(isinstance(node, ast.Raise) and ast.unparse(node) == STUB for node in ast.walk(tree)):
        raise ValueError(f"{where}: an answer cell needs {BEGIN!r} and {END!r} inside a function, else nothing is cut")
    return stub


def read_answers(notebook: Notebook) -> dict[str, str]:
    """Cell id -> source of the answer cells."""
    return {cell.id: cell.source for cell in notebook.cells if "answer" in cell.metadata.get("tags", [])}


def place_answers(exercise: Notebook, answers: Mapping[str, str]) -> Notebook:
    """A copy of the pristine ``exercise`` with these sources in its answer cells, and nothing else changed.

    Raises:
        ValueError: an answer is given for a cell that is not an answer cell.
    """
    unknown = answers.keys() - read_answers(exercise).keys()
    if unknown:
        raise ValueError(f"answers must be for {sorted(read_answers(exercise))}, also got {sorted(unknown)}")
    filled = copy.deepcopy(exercise)
    for cell in filled.cells:
        cell.source = answers.get(cell.id, cell.source)
    return filled


def read_notebook(path: Path | str) -> Notebook:
    import nbformat

    return nbformat.read(str(path), as_version=4)


def to_text(notebook: Notebook) -> str:
    """How every notebook is written: sorted keys, indent 1, a newline at the end."""
    import nbformat

    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def _require_good_output(cell: Notebook, where: str) -> None:
    kinds = [output.output_type for output in cell.outputs]
    if not kinds or cell.execution_count is None or "error" in kinds:
        found = "it has an error" if "error" in kinds else "it has no output"
        raise ValueError(f"{where}: a check cell must be stored with its output, {found}; run the solution and save it")
