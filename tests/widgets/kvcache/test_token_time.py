"""Decoding with and without a cache: both factors are stated."""

from __future__ import annotations

import pandas as pd
import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.kvcache.cost import next_token_cost
from labsupport.lm.config import LlamaConfig
from labsupport.widgets import Live
from labsupport.widgets import kvcache as widgets

TINY = LlamaConfig(256, 192, 512, 4, 6, 2)
TIMES = pd.DataFrame(
    {"with cache": [2.0, 2.1, 2.2], "without": [4.0, 9.0, 22.0]}
    | {"with cache, roofline": [0.5, 0.5, 0.6], "without, roofline": [1.0, 3.0, 9.0]},
    index=[32, 128, 512],
)


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.decoding(TINY, TIMES)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_decoding_states_both_factors(live):
    live.set(length=512)
    fewer = next_token_cost(TINY, 512, cached=False).flops / next_token_cost(TINY, 512).flops
    assert f"{fewer:.0f} times fewer operations with the cache, 10.0 times faster" in live.text
