"""Exercises and checks are found by their names."""

from __future__ import annotations

import sys

import pytest

import labsupport.checks
from labsupport.checks import exercise, exercises


def test_exercises_are_found_by_name():
    assert exercises() == sorted(exercises())
    assert labsupport.checks.ex04.EXERCISE is exercise("ex04_gptq")
    with pytest.raises(ValueError, match=r"ex01_int8_symmetric.*got 'ex99'"):
        exercise("ex99")
    with pytest.raises(AttributeError):
        _ = labsupport.checks.ex99


@pytest.mark.parametrize("name", exercises())
def test_names_of_checks_are_their_attributes_in_the_module(name):
    checks = exercise(name).checks
    module = sys.modules[f"labsupport.checks.{name}"]
    assert all(getattr(module, check.name) is check for check in checks)
    assert exercise(name).name == name
