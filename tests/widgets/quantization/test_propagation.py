"""GPTQ column by column: it ends where the algorithm ends."""

from __future__ import annotations

import re

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_no_text_is_cut_off_or_written_over_another,
    number,
)

from labsupport.quantization import rtn_quantize
from labsupport.quantization.gptq import gptq_quantize
from labsupport.widgets import Live
from labsupport.widgets import quantization as widgets


@pytest.fixture(scope="module")
def live(weight, inputs) -> Live:
    return widgets.gptq_propagation(weight, inputs)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_text_is_one_line_with_finite_numbers(live):
    assert "\n" not in live.text and live.text.endswith(".") and re.search(r"\d", live.text)
    assert not re.search(r"\bnan\b|\binf\b", live.text)


def test_no_text_is_cut_off_or_written_over_another(live):
    assert_no_text_is_cut_off_or_written_over_another(live)


def test_gptq_ends_at_the_weight_that_gptq_quantize_gives(live, weight, inputs):
    live.set(columns_done=weight.shape[1], bits=3, inputs="real activations")
    x = inputs.reshape(-1, weight.shape[1])
    seen, held_out = x[: len(x) // 2], x[len(x) // 2 :]
    power = (held_out @ weight.t()).square().sum()
    quantized = gptq_quantize(weight, seen.t() @ seen, bits=3, group_size=None).dequantize()
    nearest = rtn_quantize(weight, 3, None).dequantize()
    gptq, rtn = ((held_out @ (w - weight).t()).square().sum() / power for w in (quantized, nearest))
    assert number(live.text, "at the end {} %") == pytest.approx(100 * float(gptq), rel=0.06)
    assert number(live.text, "% and {} % of the output power") == pytest.approx(100 * float(rtn), rel=0.06)
    assert gptq < rtn


def test_gptq_on_uncorrelated_inputs_is_round_to_nearest(live, weight):
    live.set(columns_done=weight.shape[1] // 2, bits=2, inputs="uncorrelated")
    assert number(live.text, "so far: GPTQ {} %") == number(live.text, "RTN {} %") > 0
    assert "have moved by 0.00 steps" in live.text


def test_gptq_starts_at_no_error(live):
    live.set(columns_done=0, bits=3, inputs="real activations")
    assert "so far: GPTQ 0 %, RTN 0 %" in live.text
