"""From solutions to exercises: `solutions/*.ipynb` are the one source, `exercises/*.ipynb` are made from them.

What becomes of a cell goes by its tags:

- `answer`: the solution is cut. It stands between the lines `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's
  markers). Inside a function the region becomes `raise NotImplementedError`; at the top level, where helpers of the
  solution stand, it goes without a trace. Signature, docstring and all code outside of a region are kept. A cell whose
  stub would not parse or would not raise NotImplementedError stops the release: a forgotten marker leaks nothing.
- `check`: kept with its stored output, which nbval compares, so it must have run, without an error.
- `solution`: left out.
- anything else: kept without outputs; a solution marker in it stops the release.

Cell ids and metadata are kept, except what editors write on each run. nbgrader's metadata follows from the tags and the
points of the checks; where a solution's own is out of date it is written there too, and nothing else of it is touched.
The same solutions give the same bytes.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import nbformat

from labsupport.grading.nbgrader_metadata import annotate, check_points

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


@dataclass
class ReleaseReport:
    """Names of notebooks by what became of them (or, with ``check``, of what would)."""

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    stale: dict[str, list[str]] = field(default_factory=dict)  # with check: name -> what differs
    orphans: list[str] = field(default_factory=list)  # in exercises/ with no solution; never deleted
    annotated: list[str] = field(default_factory=list)  # solutions whose metadata for nbgrader was out of date

    @property
    def in_step(self) -> bool:
        """The exercises are what the solutions give, and the solutions carry the points of their checks."""
        return not self.stale and not self.orphans

    def __str__(self) -> str:
        lines = [f"annotated  {name}: nbgrader's metadata in the solution" for name in self.annotated]
        lines += [f"written    {name}" for name in self.written] + [f"unchanged  {name}" for name in self.unchanged]
        for name, differences in self.stale.items():
            lines += [f"stale      {name}", *(f"           {text}" for text in differences)]
        lines += [f"orphan     {name}: there is no solution of this name" for name in self.orphans]
        return "\n".join(lines)


def release(course_dir: Path | str, check: bool = False) -> ReleaseReport:
    """Write ``course_dir/exercises/*.ipynb`` from ``course_dir/solutions/*.ipynb``; with ``check`` only compare.

    All stubs are made before the first one is written, and each file is replaced in one step.

    Raises:
        FileNotFoundError: there are no solutions.
        ValueError: a solution cannot be released; says which cell, and why.
    """
    course_dir = Path(course_dir)
    solutions = sorted((course_dir / "solutions").glob("*.ipynb"))
    if not solutions:
        raise FileNotFoundError(f"course_dir must hold solutions/*.ipynb, got {course_dir}")
    report = ReleaseReport()
    originals = {path: _read_solution(path) for path in solutions}
    for path, notebook in originals.items():
        if _annotate(notebook, path):
            report.annotated.append(path.name)
    stubs = {path.name: to_text(make_exercise(notebook, path.name)) for path, notebook in originals.items()}
    exercises = course_dir / "exercises"
    report.orphans = sorted(path.name for path in exercises.glob("*.ipynb") if path.name not in stubs)
    for path, notebook in originals.items():
        if path.name in report.annotated:
            if check:
                report.stale[path.name] = ["the solution's metadata for nbgrader is out of date"]
            else:
                write_atomically(path, to_text(notebook))
    for name, text in stubs.items():
        target = exercises / name
        present = target.read_bytes() if target.exists() else None
        if present == text.encode():
            report.unchanged.append(name)
        elif check:
            report.stale[name] = report.stale.get(name, []) + compare(present, text)
        else:
            write_atomically(target, text)
            report.written.append(name)
    return report


def compare(present: bytes | None, wanted: str) -> list[str]:
    """How the exercise in the file (its bytes, None if there is no file) differs from the text wanted, by cell id."""
    if present is None:
        return ["missing: not released yet"]
    try:
        old = nbformat.reads(present.decode(), as_version=4)
    except Exception as error:  # nbformat, json and the decoder each raise their own
        return [f"not a notebook: {error}"]
    new = nbformat.reads(wanted, as_version=4)
    old_cells, new_cells = {c.get("id"): c for c in old.cells}, {c.id: c for c in new.cells}
    found = [f"cell {i}: missing" for i in new_cells if i not in old_cells]
    found += [f"cell {i}: not in the solution" for i in old_cells if i not in new_cells]
    for i in new_cells.keys() & old_cells.keys():
        keys = sorted(
            k for k in new_cells[i].keys() | old_cells[i].keys() if new_cells[i].get(k) != old_cells[i].get(k)
        )
        found += [f"cell {i}: other {', '.join(keys)}"] if keys else []
    return sorted(found) or ["other metadata, order of cells or formatting"]


def make_exercise(solution: Notebook, name: str = "notebook") -> Notebook:
    """The exercise of a solution, which stays as it is.

    Raises:
        ValueError: an answer cell has no stub, a check cell no output.
    """
    exercise = copy.deepcopy(solution)
    cells, count = [], 0
    for cell in exercise.cells:
        where, tags = f"{name}, cell {cell.id}", cell.metadata.get("tags", [])
        count += cell.cell_type == "code"
        if "solution" in tags:
            continue
        if "answer" in tags:
            cell.source = cut_solution(cell.source, where)
        elif BEGIN in cell.source or END in cell.source:
            raise ValueError(f"{where}: has a solution marker but not the tag `answer`")
        if "check" in tags:
            _require_good_output(cell, where)
            cell.outputs = _joined(cell.outputs)
            cell.execution_count = count  # as after "run all", whatever the order in which it really ran
        elif cell.cell_type == "code":
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
            raise ValueError(f"{where}: {marker!r} stands where the other marker is due")
        elif not inside:
            kept.append(line)
    if inside:
        raise ValueError(f"{where}: {BEGIN!r} has no {END!r}")
    stub = "\n".join(kept).strip("\n")
    try:
        tree = ast.parse(stub)
    except SyntaxError as error:
        raise ValueError(f"{where}: without its solution the cell does not parse: {error}") from None
    if not any(isinstance(node, ast.Raise) and ast.unparse(node) == STUB for node in ast.walk(tree)):
        raise ValueError(f"{where}: an answer cell needs {BEGIN!r} and {END!r} inside a function; nothing would be cut")
    return stub


def read_answers(notebook: Notebook) -> dict[str, str]:
    """Cell id -> source of the answer cells."""
    return {cell.id: cell.source for cell in notebook.cells if "answer" in cell.metadata.get("tags", [])}


def place_answers(exercise: Notebook, answers: Mapping[str, str]) -> Notebook:
    """A copy of the pristine ``exercise`` with these sources in its answer cells; all else stays pristine.

    Raises:
        ValueError: an answer is for a cell that is no answer cell.
    """
    unknown = answers.keys() - read_answers(exercise).keys()
    if unknown:
        raise ValueError(f"answers must be for {sorted(read_answers(exercise))}, got also {sorted(unknown)}")
    filled = copy.deepcopy(exercise)
    for cell in filled.cells:
        cell.source = answers.get(cell.id, cell.source)
    return filled


def read_notebook(path: Path | str) -> Notebook:
    return nbformat.read(str(path), as_version=4)


def to_text(notebook: Notebook) -> str:
    """The one way a notebook is written down: sorted keys, indent 1, a newline at the end."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` in one step: whoever reads it sees the old file or the new one. Text is written as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)  # mkstemp's 0600 is for secrets
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read_solution(path: Path) -> Notebook:
    """Read strictly: nbformat would give new ids to cells without one or with another's, other ones each time."""
    try:
        ids = [cell.get("id") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path.name}: not a notebook: {error}") from None
    if None in ids or len(set(ids)) < len(ids):
        raise ValueError(f"{path.name}: every cell must have an id of its own (nbformat 4.5), got {ids}")
    return read_notebook(path)


def _annotate(notebook: Notebook, path: Path) -> bool:
    points = check_points(path.stem)
    if points is None:
        return False  # a course of someone else's: their metadata stays as it is
    try:
        return annotate(notebook, points)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _joined(outputs: list[Any]) -> list[Any]:
    """One output for what a kernel published in pieces: how a stream is cut depends on the clock."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" and output.get("name") == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _require_good_output(cell: Notebook, where: str) -> None:
    kinds = [output.output_type for output in cell.outputs]
    if not kinds or cell.execution_count is None or "error" in kinds:
        state = "an error" if "error" in kinds else "no output of a run"
        raise ValueError(
            f"{where}: a check cell must be stored as it passes, it has {state}; run the solution and save it"
        )
