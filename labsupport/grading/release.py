"""From solutions to exercises: `solutions/*.ipynb` are the source, `exercises/*.ipynb` are made from them (`stubs`).

All stubs are made before the first one is written, and the same solutions give the same bytes. nbgrader's metadata
follows from the tags and from the points of the checks; where a solution's own metadata is out of date it is corrected
in the solution, and nothing else of it is touched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from labsupport.files import write_atomically
from labsupport.grading.nbgrader_metadata import annotate, check_points
from labsupport.grading.stubs import Notebook, make_exercise, read_notebook, to_text


@dataclass
class ReleaseReport:
    """Names of notebooks by what was done with them (or, with ``check``, what would be)."""

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    stale: dict[str, list[str]] = field(default_factory=dict)  # with check: name -> what differs
    orphans: list[str] = field(default_factory=list)  # in exercises/ with no solution; never deleted
    annotated: list[str] = field(default_factory=list)  # solutions whose metadata for nbgrader was out of date

    @property
    def in_step(self) -> bool:
        """Whether the exercises match the solutions, and the solutions carry the points of their checks."""
        return not self.stale and not self.orphans

    def __str__(self) -> str:
        lines = [f"annotated  {name}: nbgrader's metadata in the solution" for name in self.annotated]
        lines += [f"written    {name}" for name in self.written] + [f"unchanged  {name}" for name in self.unchanged]
        for name, differences in self.stale.items():
            lines += [f"stale      {name}", *(f"           {text}" for text in differences)]
        lines += [f"orphan     {name}: there is no solution with this name" for name in self.orphans]
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
    """How an exercise file (its bytes, None if there is no file) differs from the ``wanted`` text, by cell id."""
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
        found += [f"cell {i}: different {', '.join(keys)}"] if keys else []
    return sorted(found) or ["different metadata, order of cells or formatting"]


def _read_solution(path: Path) -> Notebook:
    """Read strictly: nbformat would give cells with no id, or with a duplicate one, a new random id at each reading."""
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
        return False  # someone else's course: its metadata stays as it is
    try:
        return annotate(notebook, points)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
