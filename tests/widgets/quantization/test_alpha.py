"""AWQ's exponent: output error falls where weight error rises."""

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
    return widgets.awq_alpha(weight, inputs)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_text_is_one_line_with_finite_numbers(live):
    assert "\n" not in live.text and live.text.endswith(".") and re.search(r"\d", live.text)
    assert not re.search(r"\bnan\b|\binf\b", live.text)


def test_no_text_is_cut_off_or_written_over_another(live):
    assert_no_text_is_cut_off_or_written_over_another(live)


def test_awq_lowers_output_error_where_weight_error_rises(live):
    """The source judged AWQ by its weight error, by which the best scale looks worse than none."""
    live.set(bits=3, group_size="whole row")
    best = number(live.text, "search takes α = {},")
    assert best > 0
    live.set(alpha=best)
    assert number(live.text, "output error {} and") < 1 < number(live.text, "weight error {} times")


def test_awq_without_scaling_is_the_unit(live):
    live.set(alpha=0.0, bits=4)
    assert "α = 0.00: output error 1.00 and weight error 1.00 times" in live.text
