"""The graders are graded by a machine: no systematic mistake in a model answer gets full marks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from checks.mutation.equivalents import EQUIVALENTS
from checks.mutation.operators import mutants

from labsupport.checks import exercises

NAMES = [name for name in exercises() if not name.startswith("ex06")]  # a server for each check: by hand

SMALL = '''
def scale_of(x, bits=8):
    """The scale."""
    if bits < 2:
        return None
    largest = x.abs().amax(dim=1)
    for other in range(bits):
        largest -= other
    return largest / (2**bits - 1)
'''


def test_operators_make_the_mistakes_that_they_are_named_for() -> None:
    made = {(mutant.operator, mutant.line.split(" -> ")[1]) for mutant in mutants(SMALL)}
    assert made >= {
        ("constant", "def scale_of(x, bits=9):"),
        ("default dropped", "def scale_of(x, bits):"),
        ("comparison", "if bits <= 2:"),
        ("condition negated", "if not bits < 2:"),
        ("call dropped", "largest = x.amax(dim=1)"),
        ("call dropped", "largest = x.abs()"),
        ("dim= dropped", "largest = x.abs().amax()"),
        ("other function", "largest = x.abs().amin(dim=1)"),
        ("other argument", "largest = bits.abs().amax(dim=1)"),
        ("last round dropped", "for other in range(bits - 1):"),
        ("arithmetic", "largest += other"),
        ("statement dropped", "pass"),
        ("operands swapped", "return (2 ** bits - 1) / largest"),
        ("operand dropped", "return largest / 2 ** bits"),
    }


def test_each_mutant_is_made_once_and_differs_from_the_answer_in_what_runs() -> None:
    sources = [mutant.source for mutant in mutants(SMALL)]
    assert len(sources) == len(set(sources)) > 50
    assert ast.unparse(ast.parse(SMALL)) not in sources
    assert all('"""The scale."""' in source for source in sources)


def test_state_of_an_object_moves_to_its_class() -> None:
    made = {mutant.operator for mutant in mutants("class A:\n    def __init__(self):\n        self.items = []\n")}
    assert {"state on the class", "state on the class, once"} <= made


def test_each_equivalent_mutant_is_listed_once() -> None:
    for reasons in EQUIVALENTS.values():
        keys = [key for keys in reasons.values() for key in keys]
        assert len(keys) == len(set(keys)) and all(reasons)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_mutant_of_the_model_answer_survives(name: str, root: Path) -> None:
    """In a process of its own, which forks: see benchmarks/mutants.py for what counts as killed."""
    command = [sys.executable, str(root / "benchmarks" / "mutants.py"), name]
    outcome = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout[-4000:] + outcome.stderr[-2000:]
