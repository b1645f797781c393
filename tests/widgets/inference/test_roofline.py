"""The roofline: the numbers in the text are those of the cost model."""

from __future__ import annotations

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_only_the_first_picture_draws_the_axes,
    ends,
)

from labsupport.kvcache.cost import Machine, decode_seconds
from labsupport.kvcache.sizes import PRESETS
from labsupport.widgets import Live
from labsupport.widgets import inference as widgets

MACHINES = {"slow": Machine(20e9, 200e9), "fast": Machine(3e12, 900e12)}


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.roofline_limits(PRESETS, MACHINES)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live, ends)


def test_only_the_first_picture_draws_the_axes(live):
    assert_only_the_first_picture_draws_the_axes(live)


def test_the_roofline_tells_what_the_cost_model_counts(live):
    live.set(machine="fast", model="Llama 3 8B", batch=64, length=512, weights="8 bits")
    best = decode_seconds(PRESETS["Llama 3 8B"].config, MACHINES["fast"], 512, 64, bytes_per_weight=1)
    assert f"at best {64 / best.seconds:,.3g} tokens/s and {1e3 * best.seconds:.3g} ms a step" in live.text
    assert f"Bound by {best.bound}" in live.text and "the ridge is at 300" in live.text
