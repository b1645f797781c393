"""One outlier on INT8's and FP8's grids: the numbers in the text are those of the casts."""

from __future__ import annotations

import re

import pytest
import torch
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_only_the_first_picture_draws_the_axes,
    ends,
)

from labsupport.quantization.affine import fake_quantize
from labsupport.quantization.fp8 import fp8_fake_quantize
from labsupport.widgets import Live
from labsupport.widgets import quantization as widgets
from labsupport.widgets.style import percent


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.fp8_outlier({"bell": torch.linspace(-3, 3, 999), "odd": torch.linspace(0, 3, 999) ** 3})


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live, ends)


def test_only_the_first_picture_draws_the_axes(live):
    assert_only_the_first_picture_draws_the_axes(live)


def test_the_outlier_takes_levels_from_int8_and_hardly_any_from_fp8(live):
    live.set(values="bell", outlier=512)
    levels = {name: int(count) for name, count in re.findall(r"(\w+): (\d+) levels", live.text)}
    assert levels["INT8"] == 1 and levels["E4M3"] > 100
    x = torch.linspace(-3, 3, 999)
    x = torch.cat([x / x.square().mean().sqrt(), torch.tensor([512.0])])
    for name, y in (("INT8", fake_quantize(x, symmetric=True)), ("E4M3", fp8_fake_quantize(x, "e4m3"))):
        error = float((y - x)[:-1].square().mean().sqrt())
        assert f"{name}: {levels[name]} levels between -4 and 4, error {percent(error)}" in live.text


def test_without_an_outlier_int8_is_the_more_exact_one(live):
    live.set(values="bell", outlier=8)
    errors = {name: float(error) for name, error in re.findall(r"(\w+): \d+ levels[^,]*, error ([\d.]+) %", live.text)}
    assert errors["INT8"] < errors["E4M3"] < errors["E5M2"]


def test_fp8_outlier_wants_values():
    with pytest.raises(ValueError, match="values must hold tensors that are finite"):
        widgets.fp8_outlier({"nothing": torch.zeros(5)})
