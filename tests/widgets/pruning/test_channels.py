"""Channels: those that go are counted and compared."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.widgets import Live
from labsupport.widgets import pruning as widgets


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SHARES = [0.0, 0.25, 0.5, 0.75]
SCORES = {"activation": floats(40, seed=2).exp(), "taylor": floats(40, seed=3).exp()}
CURVES = pd.DataFrame({"activation": [4.0, 4.2, 5.0, 20.0], "taylor": [4.0, 4.1, 4.8, 17.0]}, index=SHARES)


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.channel_importance(SCORES, CURVES, "perplexity")


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_channels_that_go_are_counted_and_compared(live):
    live.set(score="activation", removed=0.25)
    gone = {name: set(score.argsort()[:10].tolist()) for name, score in SCORES.items()}
    both = len(gone["activation"] & gone["taylor"])
    assert f"10 of 40 channels go ({both} of them taylor would remove as well). perplexity: 4.2." in live.text
