"""The load curve: the text tells what the simulation gives, and measured points are drawn where they belong."""

from __future__ import annotations

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_only_the_first_picture_draws_the_axes,
    ends,
)

from labsupport.inference.arrivals import poisson_requests
from labsupport.widgets import Live
from labsupport.widgets import serving as widgets
from labsupport.widgets.serving.load import MEASURED_COLUMNS
from labsupport.widgets.serving.server import StepSeconds, simulate_server
from labsupport.widgets.style import duration, percent

COST = StepSeconds(0.02, 5e-4, 1e-3)
ROWS = [
    {"max_num_seqs": 8, "max_waiting": 16, "rate": rate, "tokens_per_second": 30 * rate, "refused": 0.0}
    | {f"{kind}_{p}": 0.2 for kind in ("first_token", "whole_answer") for p in ("p50", "p95")}
    for rate in (1.0, 3.0)
]


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.load_curve(COST, poisson_requests(1.0, 40, (16, 64), (4, 32)), ROWS)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live, ends)


def test_only_the_first_picture_draws_the_axes(live):
    assert_only_the_first_picture_draws_the_axes(live)


def test_load_curve_tells_what_the_simulation_gives_and_where_it_was_measured(live):
    rate = live.controls["rate"].options[-1][1]
    live.set(rate=rate, max_num_seqs=2, max_waiting=4, latency="whole answer")
    load = simulate_server(poisson_requests(1.0, 40, (16, 64), (4, 32)), rate, 2, 4, COST)
    assert f"{load.tokens_per_second:,.0f} tokens/s, {percent(load.refused)} refused" in live.text
    assert f"{duration(load.whole_answer.p95)} for 95 %" in live.text
    assert "0 measured points" in live.text
    live.set(max_num_seqs=8, max_waiting=16)
    assert "2 measured points" in live.text


def test_measured_rows_must_be_whole():
    with pytest.raises(ValueError, match="refused is missing"):
        widgets.load_curve(COST, measured=[{name: 1.0 for name in MEASURED_COLUMNS if name != "refused"}])
    with pytest.raises(ValueError, match="base must be above 0"):
        StepSeconds(0.0, 1.0, 1.0)


def test_measured_points_are_drawn_where_they_were_measured(live):
    live.set(max_num_seqs=8, max_waiting=16)
    squares = [line.get_xydata().tolist() for line in live.figure.axes[0].lines if line.get_marker() == "s"]
    assert squares == [[[1.0, 30.0], [3.0, 90.0]]]
    live.set(max_num_seqs=4)
    assert [len(line.get_xdata()) for line in live.figure.axes[0].lines if line.get_marker() == "s"] == [0]
