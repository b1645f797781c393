"""The graders are graded: right answers pass whatever the seed, wrong ones fail with the message meant for them.

A wrong answer is graded up to the check that is to fail first. tests/grading/test_catalogues.py grades all answers by
all checks, as a class's submissions, with another seed.
"""

from __future__ import annotations

import ast
import linecache
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from labsupport.checks import PUBLIC_SEED, exercise, exercises
from labsupport.grading.stubs import cut_solution

CATALOGUE = runpy.run_path(str(Path(__file__).parent / "catalogue" / "load.py"))
ANSWERS = {name: CATALOGUE["answers"](name) for name in exercises()}
RIGHT = [answer for right, _ in ANSWERS.values() for answer in right]
WRONG = [answer for _, wrong in ANSWERS.values() for answer in wrong]


def names_of(answer) -> str:
    return f"{answer.exercise[:4]}: {answer}"


def namespace_of(cells: dict[str, str]) -> dict:
    """What a kernel's `__main__` holds after running the cells."""
    namespace = {"__name__": "__main__", "torch": torch}
    for cell, source in cells.items():
        filename = f"<{cell}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        exec(compile(source, filename, "exec", dont_inherit=True), namespace)
    return namespace


@pytest.mark.parametrize("seed", [PUBLIC_SEED, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("answer", RIGHT, ids=names_of)
def test_right_answers_get_full_marks(answer, seed, capfd):
    verdicts = exercise(answer.exercise).grade(namespace_of(answer.cells), seed)
    assert [verdict.message for verdict in verdicts.values() if not verdict.passed] == []
    assert sum(verdict.points for verdict in verdicts.values()) == exercise(answer.exercise).points
    assert capfd.readouterr() == ("", "")  # what the answer prints does not reach the notebook


@pytest.mark.parametrize("answer", WRONG, ids=names_of)
def test_wrong_answers_fail_with_the_message_meant_for_them(answer):
    whole = exercise(answer.exercise)
    last = [check.name for check in whole.checks].index(answer.check)
    verdicts = replace(whole, checks=whole.checks[: last + 1]).grade(namespace_of(answer.cells), PUBLIC_SEED)
    failed = {name: verdict for name, verdict in verdicts.items() if not verdict.passed}
    assert failed, "a wrong answer passes"
    first = next(iter(failed))
    assert first == answer.check, failed[first].message
    assert answer.phrase in failed[first].message
    assert "\n" not in failed[first].message
    assert "cannot be judged" not in "".join(verdict.message for verdict in failed.values())
    assert all(verdict.attempted and verdict.points == 0 for verdict in failed.values())


@pytest.mark.parametrize("name", exercises())
def test_the_stub_is_not_attempted_and_earns_nothing(name):
    stub = {cell: cut_solution(source) for cell, source in CATALOGUE["model_answer"](name).items()}
    for verdict in exercise(name).grade(namespace_of(stub)).values():
        assert not verdict.passed and not verdict.attempted and verdict.points == 0
        assert "not attempted yet: fill in the answer cell above" in verdict.message


@pytest.mark.parametrize("name", exercises())
def test_the_catalogue_is_large_enough(name):
    right, wrong = ANSWERS[name]
    assert len(right) >= 5 and len(wrong) >= 10
    assert {answer.check for answer in wrong} == {check.name for check in exercise(name).checks}
    sources = [ast.unparse(ast.parse("\n".join(answer.cells.values()))) for answer in right + wrong]
    assert len(set(sources)) == len(sources)


def test_points_are_those_of_the_course():
    points = {"ex01": 10, "ex02": 10, "ex03": 10, "ex04": 20, "ex05": 20, "ex06": 20, "ex07": 20}
    for name in exercises():
        assert exercise(name).points == points[name[:4]]


def test_gptq_that_ignores_its_inputs_keeps_the_points_for_rounding():
    (answer,) = [answer for answer in ANSWERS["ex04_gptq"][1] if answer.name == "H is computed and never used"]
    verdicts = exercise("ex04_gptq").grade(namespace_of(answer.cells))
    assert [name for name, verdict in verdicts.items() if verdict.passed] == ["check_levels", "check_grid"]
