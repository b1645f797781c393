"""Memory: weights and cache are counted as `labsupport.kvcache.sizes` counts them."""

from __future__ import annotations

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.kvcache.sizes import PRESETS, kv_cache_bytes, weight_bytes
from labsupport.widgets import Live
from labsupport.widgets import kvcache as widgets


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.memory(PRESETS)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(
        live, same=(("heads", "MHA"),)
    )  # Llama 2 7B is MHA as published


def test_memory_counts_weights_and_cache(live):
    live.set(model="Llama 2 70B", length=8192, batch=32, heads="MHA", kv="8 bits", gpu=192)
    config = PRESETS["Llama 2 70B"].config
    held = kv_cache_bytes(32, 8192, 80, 64, 128, 1) / 2**30
    assert f"cache of 32 × 8,192 tokens {held:.3g} GiB" in live.text
    assert f"Weights {weight_bytes(config) / 2**30:.1f} GiB" in live.text
    assert "does not fit in 192 GiB" in live.text
    left = 192 * 2**30 - weight_bytes(config)
    assert f"At most {left // kv_cache_bytes(1, 8192, 80, 64, 128, 1)} such" in live.text
