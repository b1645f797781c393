"""N:M patterns: the error is that of inputs which the score has not seen."""

from __future__ import annotations

import re

import pytest
import torch
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.pruning import nm_mask
from labsupport.widgets import Live
from labsupport.widgets import pruning as widgets


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT, INPUTS = floats(24, 48), floats(200, 48, seed=1) * floats(48, seed=6).exp()


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.semi_structured(WEIGHT, INPUTS)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_semi_structured_judges_on_inputs_that_the_score_has_not_seen(live):
    live.set(pattern="2:4", score="magnitude")
    judge = INPUTS[100:]
    masked = WEIGHT * nm_mask(WEIGHT.abs(), 2, 4)
    error = float((judge @ (masked - WEIGHT).t()).square().mean() / (judge @ WEIGHT.t()).square().mean())
    live_error = float(re.search(r"output error ([\d.]+) %", live.text)[1]) / 100
    assert live_error == pytest.approx(error, rel=0.05)
    by_wanda = float(re.search(r"by Wanda ([\d.]+) %", live.text)[1])
    assert by_wanda < 100 * live_error  # channels of very different size are what Wanda is for
