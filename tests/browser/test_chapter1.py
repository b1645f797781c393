"""Chapter 1 in a real JupyterLab and Chromium: all cells run, and every slider moves its picture without flicker.

Prints the median time from key press to new picture, decoded. LABSUPPORT_SCREENSHOTS=folder keeps a picture of each
widget as it is shown.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_quantization.ipynb"


@pytest.fixture(scope="module")
def chapter(notebook_page, lab):
    notebook = nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, lab.folder / NOTEBOOK.name)
    notebook_page.open(NOTEBOOK.name)
    notebook_page.run_all(seconds=900)
    return notebook_page


def test_all_cells_ran_without_an_error(chapter, lab):
    assert chapter.errors() == []
    notebook = nbformat.read(lab.folder / NOTEBOOK.name, nbformat.NO_CONVERT)
    assert chapter.executed_cells() == sum(c.cell_type == "code" and bool(c.source.strip()) for c in notebook.cells)


def test_every_slider_moves_its_picture_without_flicker(chapter, lab, capsys):
    pictures = chapter.watch()
    assert pictures >= 4, f"only {pictures} moving pictures"
    for index in range(pictures):
        chapter.screenshot_of_picture(index, f"chapter1-{lab.kernel}-{index}")
    sliders = chapter.sliders()
    assert len(sliders) >= pictures, f"only {len(sliders)} sliders for {pictures} pictures"
    for slider in sliders:
        name = f"slider {chapter.label_of(slider)!r}"
        for _ in range(2):
            assert chapter.nudge(slider), f"{name}: the picture did not change"
        with chapter.film(chapter.picture_of(slider)) as inked:
            assert chapter.nudge(slider), f"{name}: the picture did not change"
        assert inked and min(inked) > 0.5 * max(inked), f"{name}: a frame was blank: {inked}"
    assert chapter.errors() == []
    chapter.assert_steady()
    median = statistics.median(chapter.latencies())
    with capsys.disabled():
        print(f"\n{lab.kernel}: {len(sliders)} sliders, key to picture {median:.0f} ms (median)")
    assert median < 2000
