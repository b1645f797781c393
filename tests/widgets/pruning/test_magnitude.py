"""Magnitude pruning: the text states what was measured."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.pruning import magnitude_mask
from labsupport.widgets import Live
from labsupport.widgets import pruning as widgets


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SHARES = [0.0, 0.25, 0.5, 0.75]
WEIGHT, INPUTS = floats(24, 48), floats(200, 48, seed=1) * floats(48, seed=6).exp()
MEASURED = pd.DataFrame(
    {"perplexity": [4.0, 4.5, 6.0, 30.0], "zeros inside": [2.0, 2.1, 1.9, 2.05], "rows out": [2.0, 1.5, 1.0, 0.5]},
    index=SHARES,
)


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.sparsity(WEIGHT, MEASURED, "perplexity", ["zeros inside", "rows out"])


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_sparsity_states_what_was_measured(live):
    live.set(zeros=0.75)
    largest = float(WEIGHT[~magnitude_mask(WEIGHT, 0.75)].abs().max())
    assert f"up to {largest:.3g}" in live.text
    assert "perplexity: 30" in live.text and "rows out: 0.5 ms, 4.00 times as fast" in live.text
    live.set(zeros=0.0)
    assert live.text.startswith("0 % zeros. perplexity: 4")
