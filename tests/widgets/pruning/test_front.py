"""The trade-off: the front, and the best model within a budget."""

from __future__ import annotations

from itertools import combinations

import pandas as pd
import pytest
from matplotlib.text import Text
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.widgets import Live
from labsupport.widgets import pruning as widgets

CHAIN = pd.DataFrame(
    {"perplexity": [2.7, 3.9, 3.6, 2.8], "bytes": [100, 50, 8, 16], "ms": [4.0, 2.0, 2.1, 5.0]},
    index=["teacher", "student", "small", "quantized"],
)


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.trade_off(CHAIN, "perplexity", {"bytes on disk": "bytes", "milliseconds": "ms"})


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_trade_off_finds_the_front_and_the_best_within_the_budget(live):
    live.set(cost="bytes on disk", budget=10)
    assert "best is “small”" in live.text
    assert "On the front: small, quantized, teacher." in live.text
    live.set(budget=15)
    assert "best is “small”" in live.text
    live.set(budget=20)
    assert "best is “quantized”" in live.text
    live.set(budget=5)
    assert "no model is that cheap" in live.text
    live.set(cost="milliseconds", budget=100)
    assert "On the front: student, small, teacher." in live.text and "best is “teacher”" in live.text


def test_numbers_of_points_in_one_place_do_not_cover_each_other():
    names = ["teacher", "student", "small", "smaller", "smallest", "2 bits"]
    close = pd.DataFrame({"perplexity": [2.7, 3.9, 3.66, 3.65, 3.66, 3.64], "bytes": [100, 50, 8, 8.5, 8, 9]}, names)
    axis = widgets.trade_off(close, "perplexity", {"bytes on disk": "bytes"}).figure.axes[0]
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axis.texts}  # without the thread to the point
    assert set(boxes) == set("123456")
    for (first, a), (second, b) in combinations(boxes.items(), 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), f"{first} and {second} overlap"
