"""A student's own notebook: known by its name, and judged the same with a sandbox and without."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from labsupport.grading import job, own_work
from labsupport.grading.own_work import IN_PROCESS, check_own, exercise_of
from labsupport.grading.reports.results import Row
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


BROKEN = {next(iter(RIGHT[0].cells)): "def kv_cache_bytes(*numbers)\n    return 1"}


@pytest.mark.parametrize(
    "cells", [RIGHT[0].cells, WRONG[0].cells, BROKEN, None], ids=["right", "wrong", "syntax error", "stub"]
)
def test_without_a_sandbox_the_verdict_is_the_same(tmp_path, monkeypatch, cells):
    path = hand_in(tmp_path / f"{NAME}.ipynb", cells)
    try:
        expected = check_own(path)
    except SandboxError as error:
        pytest.skip(f"no sandbox works here: {error}")

    def no_sandbox(*_):
        raise SandboxError("not on this system")

    monkeypatch.setattr(job, "grade_one", no_sandbox)
    monkeypatch.setattr(own_work, "_start_early", lambda: None)
    row = check_own(path)
    assert row.isolation == IN_PROCESS and "not on this system" in row.notes[0]
    assert (row.score, row.status) == (expected.score, expected.status)
    if cells is not None:
        assert [check.message for check in row.checks] == [check.message for check in expected.checks]
    if cells is BROKEN:
        assert (
            "cell answer-bytes has a syntax error in line 1, `def kv_cache_bytes(*numbers)`: expected ':'"
            in row.message
        )


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


@pytest.fixture
def runs(monkeypatch):
    """The names of what ran, which is not really run."""
    names = []

    def run(name, *_):
        names.append(name)
        return Row(own_work.ME, name, 10, 10, "ok", "all 6 checks hold")

    monkeypatch.setattr(own_work, "_run", run)
    return names


def test_only_what_changed_in_the_answers_runs_again(tmp_path, runs):
    said: list[str] = []
    path, cache = hand_in(tmp_path / f"{NAME}.ipynb", RIGHT[0].cells), tmp_path / "cache"

    def check(**options):
        return check_own(path, cache=cache, say=said.append, **options)

    first = check()
    notebook = read_notebook(path)
    notebook.cells[3].execution_count, notebook.cells[0].source = 7, "# My notes"  # saved again, with other outputs
    path.write_text(to_text(notebook), encoding="utf-8")
    assert check() == first and len(runs) == 1
    assert said == [f"{NAME}: not run again, since nothing in it has changed"]
    check(again=True)
    check(timeout=5)
    assert len(runs) == 3
    hand_in(path, WRONG[0].cells)
    check()
    assert len(runs) == 4
    own_work._package_state.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as other:  # another version of the course
            other.setattr("labsupport.__version__", "0.0")
            check()
    finally:
        own_work._package_state.cache_clear()
    assert len(runs) == 5


def test_what_is_unchanged_is_shown_without_importing_torch(tmp_path, runs):
    path, cache = hand_in(tmp_path / f"{NAME}.ipynb", RIGHT[0].cells), tmp_path / "cache"
    check_own(path, cache=cache)
    code = f"""
import sys
from pathlib import Path
from labsupport.cli import app
from labsupport.grading import own_report, own_work
row = own_work.check_own(Path({str(path)!r}), cache=Path({str(cache)!r}))
print(own_report.show(row).splitlines()[0])
slow = {{"torch", "nbformat", "IPython"}} & set(sys.modules)
sys.exit(f"imported: {{slow}}" if slow else 0)
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (outcome.returncode, outcome.stdout) == (0, f"{NAME}: 10 of 10 points, ok\n"), outcome.stderr
