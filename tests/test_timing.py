from __future__ import annotations

import time

import pytest

from labsupport.timing import median_milliseconds


def test_functions_take_turns_after_one_call_each_to_warm_up():
    calls: list[str] = []
    median_milliseconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "ab" + "ababab"


def test_it_measures_milliseconds():
    measured = median_milliseconds({"sleep": lambda: time.sleep(0.02), "nothing": lambda: None}, repeats=3)
    assert measured["sleep"] >= 20 > measured["nothing"]


def test_repeats_are_checked():
    with pytest.raises(ValueError, match="repeats must be at least 1; got 0"):
        median_milliseconds({}, repeats=0)
