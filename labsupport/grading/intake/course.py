"""The exercises of the course, and which cells tell them apart, without importing anything that is slow to import."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import labsupport
from labsupport.grading.intake.notebook import Cell, InvalidNotebook, read_cells


def exercise_names() -> list[str]:
    """As `labsupport.checks.exercises`, but without torch."""
    found = pkgutil.iter_modules([str(Path(labsupport.__file__).parent / "checks")])
    return sorted(module.name for module in found if module.name.startswith("ex"))


def cell_ids(course: Path | None = None) -> dict[str, frozenset[str]]:
    """Exercise -> ids and sources of cells that only this exercise has; empty where those are not at hand."""
    places = [course] if course is not None else [Path.cwd(), Path(labsupport.__file__).parents[1]]
    for place in places:
        ids: dict[str, set[str]] = {}
        for name in exercise_names():
            path = place / "exercises" / f"{name}.ipynb"
            if path.is_file():
                cells = read_cells(path.read_bytes())
                ids[name] = {name for cell in cells for name in cell.ids} | set(map(_source, cells))
        if ids:
            counts = Counter(name for found in ids.values() for name in found)
            return {name: frozenset(i for i in found if counts[i] == 1) for name, found in ids.items()}
    return {}


def exercises_in(data: bytes, ids: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """The exercises whose cells a notebook holds, the one with most of its cells first; none if it cannot be read.

    Old editors drop the ids: then the sources of the cells decide, of which some are as they were handed out.
    """
    try:
        cells = read_cells(data)
    except InvalidNotebook:
        return ()
    found: dict[str, int] = {}
    for present in ({name for cell in cells for name in cell.ids}, set(map(_source, cells))):
        found = found or {name: len(present & own) for name, own in ids.items() if present & own}
    return tuple(sorted(found, key=lambda name: (-found[name], name)))


def _source(cell: Cell) -> str:
    return "source: " + " ".join(cell.source.split())
