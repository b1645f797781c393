"""A student's own notebook: known by its name, and judged the same with a sandbox and without."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from labsupport.grading import own_work
from labsupport.grading.own_work import IN_PROCESS, check_own, exercise_of, pristine_of
from labsupport.grading.sandbox.warm import SandboxError
from labsupport.grading.stubs import place_answers, read_notebook, to_text

ROOT = Path(__file__).parents[2]
CATALOGUE = runpy.run_path(str(ROOT / "tests" / "checks" / "catalogue" / "load.py"))
NAME = "ex02_kv_cache_size"
RIGHT, WRONG = CATALOGUE["answers"](NAME)


def hand_in(path: Path, cells: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stub = read_notebook(ROOT / "exercises" / f"{NAME}.ipynb")
    path.write_text(to_text(place_answers(stub, cells or {})), encoding="utf-8")
    return path


@pytest.mark.parametrize("cells", [RIGHT[0].cells, WRONG[0].cells, None], ids=["right", "wrong", "stub"])
def test_without_a_sandbox_the_verdict_is_the_same(tmp_path, monkeypatch, cells):
    path = hand_in(tmp_path / f"{NAME}.ipynb", cells)
    try:
        expected = check_own(path)
    except SandboxError as error:
        pytest.skip(f"no sandbox works here: {error}")

    def no_sandbox(job):
        raise SandboxError("not on this system")

    monkeypatch.setattr(own_work, "grade_one", no_sandbox)
    row = check_own(path)
    assert row.isolation == IN_PROCESS and "not on this system" in row.notes[0]
    assert (row.score, row.status) == (expected.score, expected.status)
    if cells is not None:
        assert [check.message for check in row.checks] == [check.message for check in expected.checks]


@pytest.mark.parametrize(("name", "expected"), [
    (f"{NAME}.ipynb", NAME), ("ex02.ipynb", NAME), ("EX02_mine (1).ipynb", NAME),
    ("ex020.ipynb", None), ("my_ex02.ipynb", None),
])  # fmt: skip
def test_a_notebook_is_known_by_its_name(name, expected):
    if expected is None:
        with pytest.raises(ValueError, match="must begin with one of"):
            exercise_of(Path(name))
    else:
        assert exercise_of(Path(name)) == expected


def test_where_the_solutions_are_not_at_hand_the_own_notebook_is_the_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = hand_in(tmp_path / f"{NAME}.ipynb", RIGHT[0].cells)
    frame = pristine_of(path, NAME)
    assert b"raise NotImplementedError" in frame and RIGHT[0].cells[next(iter(RIGHT[0].cells))].encode() not in frame
    assert check_own(path).score == 10
