"""Observers: the one that searches for the least error finds it."""

from __future__ import annotations

import re

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_no_text_is_cut_off_or_written_over_another,
    number,
)

from labsupport.widgets import Live
from labsupport.widgets import quantization as widgets


@pytest.fixture(scope="module")
def live(weight, inputs) -> Live:
    return widgets.observer_ranges({"activations": inputs, "weights": weight})


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_text_is_one_line_with_finite_numbers(live):
    assert "\n" not in live.text and live.text.endswith(".") and re.search(r"\d", live.text)
    assert not re.search(r"\bnan\b|\binf\b", live.text)


def test_no_text_is_cut_off_or_written_over_another(live):
    assert_no_text_is_cut_off_or_written_over_another(live)


def test_observer_mse_is_never_worse_than_the_others(live):
    for bits in (3, 8):
        live.set(values="activations", bits=bits, percentile=99.0)
        errors = {name: number(live.text.split(name)[1], "error {} %") for name in ("min–max", "percentile", "MSE")}
        assert errors["MSE"] <= 1.05 * min(errors.values())
