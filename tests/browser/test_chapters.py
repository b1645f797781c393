"""Chapters in a real JupyterLab and Chromium: every slider moves its picture without flicker.

nbval runs every cell of every chapter (tests/notebooks/test_chapters.py). Here only the cells run that make a picture
which moves, and those whose names they use. Colab's packages show chapter 1 whole: it has every kind of control.

Prints the median time from key press to new picture, decoded. LABSUPPORT_SCREENSHOTS=folder keeps a picture of each
widget as it is shown.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import nbformat
import pytest

from labsupport.grading.intake.cell_code import defined_names, used_names

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # test_live.py has the quick ones
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


def cells_for_pictures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells with a moving picture, and for each name that one of these uses the last cell that defined it."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    wanted = {i for i, cell in enumerate(code) if any(WIDGET in output.get("data", {}) for output in cell.outputs)}
    to_follow = list(wanted)
    while to_follow:
        reader = to_follow.pop()
        for name in used_names(code[reader].source):
            definers = [i for i in range(reader) if name in defined_names(code[i].source)]
            if definers and definers[-1] not in wanted:
                wanted.add(definers[-1])
                to_follow.append(definers[-1])
    return [code[i] for i in sorted(wanted)]


@pytest.fixture(
    scope="module",
    params=NOTEBOOKS,
    ids=lambda path: path.stem,
)
def chapter(request, notebook_page, lab):
    path = request.param
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    if lab.kernel != "colab":
        notebook.cells = cells_for_pictures(notebook)
    elif path != NOTEBOOKS[0]:
        pytest.skip("on Colab's packages chapter 1 stands for all")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, lab.folder / path.name)
    notebook_page.open(path.name)
    notebook_page.run_all(seconds=900)
    notebook_page.notebook = path
    return notebook_page


def test_all_cells_ran_without_an_error(chapter, lab):
    assert chapter.errors() == []
    notebook = nbformat.read(lab.folder / chapter.notebook.name, nbformat.NO_CONVERT)
    assert chapter.executed_cells() == sum(c.cell_type == "code" and bool(c.source.strip()) for c in notebook.cells)


def test_every_slider_moves_its_picture_without_flicker(chapter, lab, capsys):
    pictures = chapter.watch()
    assert pictures >= 2, f"only {pictures} moving pictures"
    for index in range(pictures):
        chapter.screenshot_of_picture(index, f"{chapter.notebook.stem}-{lab.kernel}-{index}")
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
        name = f"{chapter.notebook.stem}, {lab.kernel}"
        print(f"\n{name}: {len(sliders)} sliders, key to picture {median:.0f} ms (median)")
