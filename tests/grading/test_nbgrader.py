"""A course on nbgrader can use the notebooks as they are: its tools accept solutions and reject stubs."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from pathlib import Path

import pytest

from labsupport.checks import exercise, exercises
from labsupport.grading.nbgrader_metadata import annotate, check_points
from labsupport.grading.release import release
from labsupport.grading.stubs import make_exercise, read_notebook, to_text

ROOT = Path(__file__).parents[2]
QUICK = "ex02_kv_cache_size"


def notebook(folder: str, name: str):
    return read_notebook(ROOT / folder / f"{name}.ipynb")


@pytest.mark.parametrize("folder", ["solutions", "exercises"])
@pytest.mark.parametrize("name", exercises())
def test_answers_are_solutions_and_checks_are_graded(name, folder):
    cells = {cell.id: cell for cell in notebook(folder, name).cells}
    found = {cell_id: cell.metadata.nbgrader for cell_id, cell in cells.items() if "nbgrader" in cell.metadata}
    assert {i for i, m in found.items() if m["solution"]} == {
        i for i, cell in cells.items() if "answer" in cell.metadata.get("tags", [])
    }
    assert {i: m["points"] for i, m in found.items() if m["grade"]} == check_points(name)
    assert sum(m["points"] for m in found.values() if m["grade"]) == exercise(name).points
    assert all(m["grade_id"] == i and m["locked"] == m["grade"] for i, m in found.items())


@pytest.mark.parametrize("name", exercises())
def test_nbgraders_schema_accepts_the_metadata(name):
    nbgraderformat = pytest.importorskip("nbgrader.nbgraderformat", reason="nbgrader is not installed")
    for folder in ("solutions", "exercises"):
        nbgraderformat.MetadataValidator().validate_nb(notebook(folder, name))


@pytest.mark.parametrize("name", [
    name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in exercises()
])  # fmt: skip
def test_nbgrader_validates_the_solution_and_not_the_stub(name, tmp_path):
    validator = pytest.importorskip("nbgrader.validator", reason="nbgrader is not installed").Validator()
    validator.config.Execute.timeout = 600
    for folder in ("solutions", "exercises"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.ipynb").write_bytes((ROOT / folder / f"{name}.ipynb").read_bytes())
    assert validator.validate(str(tmp_path / "solutions" / f"{name}.ipynb")) == {}
    result = validator.validate(str(tmp_path / "exercises" / f"{name}.ipynb"))
    assert list(result) == ["failed"] and len(result["failed"]) == len(exercise(name).checks)
    assert all("not attempted yet" in failed["raw_error"] for failed in result["failed"])


@pytest.mark.slow
def test_nbgraders_own_release_follows_the_guide(tmp_path, monkeypatch):
    """`nbgrader generate_assignment` with the configuration of the guide gives what `labsupport release` gives."""
    apps = pytest.importorskip("nbgrader.apps", reason="nbgrader is not installed")
    guide = (ROOT / "docs" / "instructors.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"```python\n(# nbgrader_config\.py\n.*?)```", guide, flags=re.S)
    (tmp_path / "nbgrader_config.py").write_text(config)
    (tmp_path / "source" / "week3").mkdir(parents=True)
    (tmp_path / "source" / "week3" / f"{QUICK}.ipynb").write_text(to_text(notebook("solutions", QUICK)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # nbgrader calls `alembic`
    apps.NbGraderApp.launch_instance(["generate_assignment", "week3", "--create"])
    apps.NbGraderApp.clear_instance()
    made = read_notebook(tmp_path / "release" / "week3" / f"{QUICK}.ipynb")
    ours = notebook("exercises", QUICK)
    assert [(cell.id, cell.source) for cell in made.cells] == [(cell.id, cell.source) for cell in ours.cells]


# Release keeps the metadata true -------------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path):
    (tmp_path / "solutions").mkdir()
    bare = notebook("solutions", QUICK)
    for cell in bare.cells:
        cell.metadata.pop("nbgrader", None)
    (tmp_path / "solutions" / f"{QUICK}.ipynb").write_text(to_text(bare), encoding="utf-8")
    return tmp_path


def test_release_writes_the_metadata_into_the_solution_and_nothing_else(course):
    path = course / "solutions" / f"{QUICK}.ipynb"
    before = json.loads(path.read_text())
    untouched = path.read_bytes()
    stale = release(course, check=True)
    assert not stale.in_step and "metadata for nbgrader is out of date" in str(stale) and path.read_bytes() == untouched
    assert release(course).annotated == [path.name]
    after = json.loads(path.read_text())
    for cell in after["cells"]:
        cell["metadata"].pop("nbgrader", None)
    assert after == before
    again = release(course)
    assert again.in_step and again.annotated == [] and release(course, check=True).in_step
    assert (course / "exercises" / path.name).read_text() == to_text(notebook("exercises", QUICK))


def test_points_that_changed_are_brought_up_to_date():
    solution = notebook("solutions", QUICK)
    points = check_points(QUICK)
    assert not annotate(solution, points)
    assert annotate(solution, {**points, "check-bytes": 99})
    assert next(cell for cell in solution.cells if cell.id == "check-bytes").metadata.nbgrader["points"] == 99
    moved = copy.deepcopy(solution)
    moved.cells[0].metadata["nbgrader"] = {"grade": True}  # left behind by an editor
    assert annotate(moved, points) and "nbgrader" not in moved.cells[0].metadata
    assert make_exercise(moved).cells[0].metadata == {}


def test_a_check_cell_without_a_check_stops_the_release(course):
    path = course / "solutions" / f"{QUICK}.ipynb"
    broken = notebook("solutions", QUICK)
    next(cell for cell in broken.cells if cell.id == "check-bytes").id = "check-bites"
    path.write_text(to_text(broken), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{QUICK}.ipynb: points must be for the check cells .*check-bites"):
        release(course)
    assert check_points("my_own_notebook") is None
