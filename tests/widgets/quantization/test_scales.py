"""Granularity: the numbers in the text are those of the algorithms."""

from __future__ import annotations

import re

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_no_text_is_cut_off_or_written_over_another,
    number,
)

from labsupport.quantization import rtn_quantize
from labsupport.widgets import Live
from labsupport.widgets import quantization as widgets


@pytest.fixture(scope="module")
def live(weight, inputs) -> Live:
    return widgets.granularity(weight, inputs)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_text_is_one_line_with_finite_numbers(live):
    assert "\n" not in live.text and live.text.endswith(".") and re.search(r"\d", live.text)
    assert not re.search(r"\bnan\b|\binf\b", live.text)


def test_no_text_is_cut_off_or_written_over_another(live):
    assert_no_text_is_cut_off_or_written_over_another(live)


def test_granularity_states_the_algorithms_numbers(live, weight, inputs):
    live.set(scale="group of 16", bits=3)
    quantized = rtn_quantize(weight, 3, 16)
    x = inputs.reshape(-1, weight.shape[1])
    error = (x @ (quantized.dequantize() - weight).t()).square().mean() / (x @ weight.t()).square().mean()
    assert number(live.text, "bits: {} bits per weight") == pytest.approx(quantized.bits_per_weight, abs=1e-3)
    assert number(live.text, "output error {} %") == pytest.approx(100 * float(error), rel=0.06)


def test_finer_scales_bring_less_output_error(live):
    errors = []
    for scale in ("tensor", "row", "group of 16"):
        live.set(scale=scale, bits=4)
        errors.append(number(live.text, "output error {} %"))
    assert errors[0] > errors[1] > errors[2]
