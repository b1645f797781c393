"""Key-value heads: the kind of sharing is named."""

from __future__ import annotations

import pandas as pd
import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.widgets import Live
from labsupport.widgets import kvcache as widgets

HEADS = pd.DataFrame(
    {"bytes a token": [6144.0, 3072, 1024], "pooled": [4.0, 6.0, 9.0], "uptrained": [4.1, 4.3, 4.9]}, index=[6, 3, 1]
)


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.heads(6, HEADS)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_heads_names_the_kind(live):
    for kv_heads, kind in ((6, "MHA"), (3, "GQA"), (1, "MQA")):
        live.set(kv_heads=kv_heads)
        assert live.text.startswith(f"{kind}: 6 query heads share {kv_heads} KV heads")
    assert "Perplexity 9 just pooled, 4.9 after training on" in live.text


def test_points_of_different_conversions_are_not_joined(live):
    """2 KV heads are better than 3 here: a line through the points would claim what is between them."""
    right = live.figure.axes[1]
    assert [line.get_linestyle() for line in right.lines if len(line.get_xdata()) > 2] == ["None", "None"]
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["6,144\n(6)", "3,072\n(3)", "1,024\n(1)"]
