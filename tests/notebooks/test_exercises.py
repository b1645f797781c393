"""`pytest --nbval` on an exercise: fails on the stub, passes on right answers, fails on wrong ones.

Each exercise's copies run in one nbval session in a process of its own. The rest of the catalogue runs without kernels
in tests/checks/test_catalogue.py.
"""

from __future__ import annotations

import itertools
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from labsupport.checks import exercise, exercises
from labsupport.grading.stubs import place_answers, read_notebook, to_text

QUICK = "ex01_int8_symmetric"  # six kernels that import torch; each other exercise takes four

ROOT = Path(__file__).parents[2]
CATALOGUE = runpy.run_path(str(ROOT / "tests" / "checks" / "catalogue" / "load.py"))

RIGHT = {
    "ex01_int8_symmetric": ["multiplies by the inverse in float64, floor of 1e-8, prints and warns", "numpy inside"],
    "ex02_kv_cache_size": ["keys and values apart, layer by layer, printed"],
    "ex03_mha_vs_gqa": ["head by head, printed"],
    "ex04_gptq": ["the course's own GPTQ"],
    "ex05_continuous_batching": ["dataclasses and typed, admits at the end of a step and in add, prints"],
    "ex06_inference_api": ["def endpoints that step the engine themselves under a lock, printing"],
    "ex07_prune_and_distill": ["topk and scatter, the loss term by term, masks from the start"],
}
WRONG = {
    "ex01_int8_symmetric": ["the reciprocal as the scale", "a tensor subclass that is equal to everything"],
    "ex02_kv_cache_size": ["one layer of one sequence"],
    "ex03_mha_vs_gqa": ["keys of all query heads are kept"],
    "ex04_gptq": ["no damping, dead columns not set"],
    "ex05_continuous_batching": ["removes from the list that it iterates over"],
    "ex06_inference_api": ["async def calls engine.generate"],
    "ex07_prune_and_distill": ["the formula: alpha weighs the labels"],
}


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


@pytest.fixture(
    scope="module",
    params=[name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in exercises()],
)
def session(request, tmp_path_factory):
    """(exercise, failures by notebook): one line of message a failed cell."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    pristine = read_notebook(ROOT / "exercises" / f"{name}.ipynb")
    (folder / "stub.ipynb").write_text(to_text(pristine), encoding="utf-8")
    (folder / "solution.ipynb").write_text(
        (ROOT / "solutions" / f"{name}.ipynb").read_text(encoding="utf-8"), encoding="utf-8"
    )
    for answer in itertools.chain(*CATALOGUE["answers"](name)):
        if answer.name in RIGHT[name] + WRONG[name]:
            (folder / f"{slug(answer.name)}.ipynb").write_text(
                to_text(place_answers(pristine, answer.cells)), encoding="utf-8"
            )
    options = ["--nbval", "--nbval-cell-timeout=120", "-p", "no:cacheprovider", "-q", "--color=no"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "--rootdir",
        str(folder),
        f"--junitxml={folder / 'report.xml'}",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTEST_ADDOPTS", None)
    run = subprocess.run(
        [*command, str(folder)], env=environment, capture_output=True, text=True, cwd=folder, timeout=500
    )
    assert (folder / "report.xml").exists(), run.stdout + run.stderr
    failures: dict[str, list[str]] = {path.stem: [] for path in folder.glob("*.ipynb")}
    cases = dict.fromkeys(failures, 0)
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        notebook = case.get("classname", "").split(".")[0]
        cases[notebook] += 1
        failures[notebook] += [failure.text or "" for failure in case.iter("failure")]
        assert not list(case.iter("error")) and not list(case.iter("skipped")), ElementTree.tostring(case)
    assert all(cases.values()), run.stdout
    return name, failures


def test_the_stub_fails_in_every_check(session):
    name, failures = session
    not_attempted = [text for text in failures["stub"] if "NotAttempted: ✗" in text]
    assert len(not_attempted) == len(exercise(name).checks)
    assert all("fill in the answer cell above" in text for text in not_attempted)
    for text in not_attempted:  # one line of feedback, no traceback
        assert "Traceback (most recent call last)" not in text and "labsupport/checks" not in text


def test_the_solution_passes(session):
    assert session[1]["solution"] == []


def test_right_answers_pass(session):
    name, failures = session
    for answer in RIGHT[name]:
        assert failures[slug(answer)] == [], answer


def test_wrong_answers_fail_with_their_message(session):
    name, failures = session
    phrases = {answer.name: answer.phrase for answer in CATALOGUE["answers"](name)[1]}
    for answer in WRONG[name]:
        assert any(phrases[answer] in text and "CheckFailed: ✗" in text for text in failures[slug(answer)]), failures[
            slug(answer)
        ]
