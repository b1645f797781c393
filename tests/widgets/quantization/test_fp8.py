"""FP8 beside INT8: the numbers in the text are those of the casts."""

from __future__ import annotations

import re

import pytest
import torch
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_no_text_is_cut_off_or_written_over_another,
    number,
)

from labsupport.quantization import fp8_fake_quantize, fp8_format
from labsupport.widgets import Live
from labsupport.widgets import quantization as widgets
from labsupport.widgets.quantization.fp8 import fp8_bound


@pytest.fixture(scope="module")
def live(weight, inputs) -> Live:
    return widgets.fp8_grid({"weights": weight, "activations": inputs})


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_text_is_one_line_with_finite_numbers(live):
    assert "\n" not in live.text and live.text.endswith(".") and re.search(r"\d", live.text)
    assert not re.search(r"\bnan\b|\binf\b", live.text)


def test_no_text_is_cut_off_or_written_over_another(live):
    assert_no_text_is_cut_off_or_written_over_another(live)


@pytest.mark.parametrize("exponent", [-8, 0, 6])
def test_fp8_states_the_casts_numbers(live, inputs, exponent):
    live.set(values="activations", exponent=exponent)
    x = inputs.flatten() * 2.0**exponent
    for name, code in (("E4M3", "e4m3"), ("E5M2", "e5m2")):
        error = (fp8_fake_quantize(x, code, scale=1.0) - x).square().mean().sqrt() / x.square().mean().sqrt()
        stated = number(live.text.split("Lost")[0], f"{name} {{}} %")
        assert stated == pytest.approx(100 * float(error), rel=0.06)


@pytest.mark.parametrize("code", ["e4m3", "e5m2"])
def test_fp8_bound_holds_for_every_number(code):
    x = 2.0 ** torch.linspace(-24, 18, 5000)
    error = (fp8_fake_quantize(x, code, scale=1.0) - x).abs() / x
    bound = torch.from_numpy(fp8_bound(x.double().numpy(), code))
    assert (error <= bound * (1 + 1e-6)).all()
    normal = (x >= fp8_format(code).min_normal) & (x <= fp8_format(code).max)
    assert (error / bound)[normal].max() > 0.95  # and it is tight
