"""Values and grid: the numbers in the text are those of the algorithms."""

from __future__ import annotations

import re

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_no_text_is_cut_off_or_written_over_another,
    number,
)

from labsupport.quantization import choose_qparams, fake_quantize
from labsupport.widgets import Live
from labsupport.widgets import quantization as widgets


@pytest.fixture(scope="module")
def live(weight, inputs) -> Live:
    return widgets.quantization_grid({"weights": weight, "activations": inputs.relu()})


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_text_is_one_line_with_finite_numbers(live):
    assert "\n" not in live.text and live.text.endswith(".") and re.search(r"\d", live.text)
    assert not re.search(r"\bnan\b|\binf\b", live.text)


def test_no_text_is_cut_off_or_written_over_another(live):
    assert_no_text_is_cut_off_or_written_over_another(live)


def test_grid_states_the_algorithms_numbers(live, weight):
    live.set(values="weights", bits=4, outlier=0, kept_range=100, symmetric=True)
    qparams = choose_qparams(weight, bits=4, symmetric=True)
    error = fake_quantize(weight, bits=4, symmetric=True) - weight
    assert number(live.text, "{} levels") == 15
    assert number(live.text, "step {};") == pytest.approx(float(qparams.scale), rel=1e-2)
    assert number(live.text, "RMS error {},") == pytest.approx(float(error.square().mean().sqrt()), rel=1e-2)
    assert number(live.text, "worst error inside the range {} half steps") <= 1


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kept_range", [30, 100])
@pytest.mark.parametrize("outlier", [0, 8])
def test_grid_error_is_at_most_half_a_step_inside_the_range(live, bits, kept_range, outlier):
    live.set(values="activations", bits=bits, outlier=outlier, kept_range=kept_range, symmetric=False)
    assert number(live.text, "worst error inside the range {} half steps") <= 1.0
    assert ("0 % of the values are clipped" in live.text) == (kept_range == 100)
