"""The monitor's dashboard: the percentiles are those of the window."""

from __future__ import annotations

import re

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_only_the_first_picture_draws_the_axes,
    ends,
)

from labsupport.serving.monitor import percentiles
from labsupport.widgets import Live
from labsupport.widgets import serving as widgets
from labsupport.widgets.style import duration


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.monitor_dashboard([(k / 2, 0.2 + (k * 37 % 100) / 50) for k in range(240)], 1.5)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live, ends)


def test_only_the_first_picture_draws_the_axes(live):
    assert_only_the_first_picture_draws_the_axes(live)


def test_the_monitor_looks_at_its_window_only(live):
    live.set(minute=live.controls["minute"].options[-1][1], window=15)
    now = 60 * live.controls["minute"].value
    inside = [0.2 + (k * 37 % 100) / 50 for k in range(240) if now - 15 <= k / 2 <= now]
    summary = percentiles(inside)
    assert f"{len(inside)} requests: mean {duration(summary.mean)}" in live.text
    assert f"95th percentile {duration(summary.p95)}, 99th {duration(summary.p99)}" in live.text


def test_short_windows_cry_wolf_and_long_ones_are_late():
    live = widgets.monitor_dashboard()
    crossings = {}
    for window in (5, 60, 300):
        live.set(window=window)
        crossings[window] = int(re.search(r"crosses 4 s (\d+) times", live.text)[1])
    assert crossings[5] > crossings[60] > crossings[300] >= 1
    live.set(minute=9.5, window=300)  # minutes after the rush
    late = float(re.search(r"95th percentile ([\d.]+) s", live.text)[1])
    live.set(window=60)
    assert late > 4 > float(re.search(r"95th percentile ([\d.]+) s", live.text)[1])


def test_an_empty_window_is_said_to_be_empty():
    live = widgets.monitor_dashboard([(1.0, 0.5), (119.0, 0.5)])
    live.set(minute=live.controls["minute"].options[20][1], window=5)
    assert "nothing in the window" in live.text
