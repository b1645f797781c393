"""The frame that a student's own notebook is put into: from the solution, or from the notebook itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labsupport.checks import exercises
from labsupport.grading.handed_out import pristine_of
from labsupport.grading.intake.notebook import read_cells, read_submission

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", exercises())
def test_from_a_solution_it_is_what_was_handed_out(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    handed_out = (ROOT / "exercises" / f"{name}.ipynb").read_bytes()
    frame = pristine_of(ROOT / "exercises" / f"{name}.ipynb", name)
    assert [(cell.ids[0], cell.source, cell.tags) for cell in read_cells(frame)] == [
        (cell.ids[0], cell.source, cell.tags) for cell in read_cells(handed_out)
    ]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An exercise that was downloaded by itself; a function that writes it with some cells changed."""
    monkeypatch.chdir(tmp_path)
    name = "ex02_kv_cache_size"

    def write(change):
        notebook = json.loads((ROOT / "exercises" / f"{name}.ipynb").read_bytes())
        change(notebook["cells"])
        path = tmp_path / f"{name}.ipynb"
        path.write_text(json.dumps(notebook))
        return read_submission(path.read_bytes(), pristine_of(path, name))

    return write


RIGHT = "def kv_cache_bytes(*numbers):\n    return 1\n"


def answer(cells, source=RIGHT):
    next(cell for cell in cells if cell.get("id") == "answer-bytes")["source"] = source


def own_cell(cells):
    cells.append({"cell_type": "code", "id": "4f1d2c3b", "metadata": {}, "source": RIGHT, "outputs": []})


def without_tags(cells):
    answer(cells)
    for cell in cells:
        cell["metadata"] = {}
        cell["id"] += "0"


def test_alone_the_stubs_are_made_from_the_answers(alone):
    assert not alone(lambda cells: None).attempted
    read = alone(answer)
    assert read.attempted and read.answers["answer-bytes"] == RIGHT and read.notes == ()


def test_alone_an_answer_in_another_cell_is_found_too(alone):
    read = alone(own_cell)
    assert read.attempted and "your kv_cache_bytes stands in code cell" in read.notes[0]


def test_where_an_editor_dropped_ids_and_tags_the_checks_name_the_functions(alone):
    read = alone(without_tags)
    assert read.attempted and RIGHT in read.answers.values()
