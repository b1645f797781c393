"""Code cells fit the window that people have: nothing scrolls sideways, and a cell is seen whole."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path for name in ("notebooks", "solutions", "exercises") for path in (ROOT / name).glob("*.ipynb"))
COLUMNS, LINES = 88, 25


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, nbformat.NO_CONVERT).cells if cell.cell_type == "code"]


def too_wide(cells: list[nbformat.NotebookNode]) -> dict[str, int]:
    widths = {cell["id"]: max(map(len, cell.source.splitlines() or [""])) for cell in cells}
    return {name: width for name, width in widths.items() if width > COLUMNS}


def too_tall(cells: list[nbformat.NotebookNode]) -> dict[str, int]:
    """Answer cells may be taller: their length is that of the solution, which the student writes, not reads."""
    shown = [cell for cell in cells if "answer" not in cell.metadata.get("tags", [])]
    heights = {cell["id"]: len(cell.source.splitlines()) for cell in shown}
    return {name: height for name, height in heights.items() if height > LINES}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_cell_scrolls_sideways_or_fills_more_than_a_window(path: Path) -> None:
    cells = code_cells(path)
    assert cells
    assert too_wide(cells) == {}, f"more than {COLUMNS} columns"
    assert too_tall(cells) == {}, f"more than {LINES} lines"
