"""The dashboards of serving draw the engine's simulation, with refusals, and the real monitor's percentiles."""

from __future__ import annotations

import re

import pytest

from labsupport.inference.arrivals import SimRequest, poisson_requests
from labsupport.inference.simulate import affine_cost, simulate
from labsupport.serving.monitor import percentiles
from labsupport.widgets import Live
from labsupport.widgets import serving as widgets
from labsupport.widgets.serving import NO_BOUND, StepSeconds, capacity, simulate_server

COST = StepSeconds(0.02, 5e-4, 1e-3)
ROWS = [
    {"max_num_seqs": 8, "max_waiting": 16, "rate": rate, "tokens_per_second": 30 * rate, "refused": 0.0}
    | {f"{kind}_{p}": 0.2 for kind in ("first_token", "whole_answer") for p in ("p50", "p95")}
    for rate in (1.0, 3.0)
]


@pytest.fixture(scope="module")
def all_widgets() -> dict[str, Live]:
    few = poisson_requests(1.0, 40, (16, 64), (4, 32))
    return {
        "load_curve": widgets.load_curve(COST, few, ROWS),
        "monitor_dashboard": widgets.monitor_dashboard([(k / 2, 0.2 + (k * 37 % 100) / 50) for k in range(240)], 1.5),
    }


def others(control) -> list:
    if not hasattr(control, "options"):
        return [control.min, control.max]
    values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    return [value for value in (values[0], values[-1]) if value != control.value]


@pytest.mark.parametrize("name", ["load_curve", "monitor_dashboard"])
def test_every_control_changes_picture_and_text_and_back(all_widgets, name):
    live = all_widgets[name]
    start, picture, text = live.values, live.png(), live.text
    for control, widget in live.controls.items():
        for value in others(widget):
            live.set(**{control: value})
            assert live.png() != picture, f"{control}={value} does not change the picture"
            assert live.text != text, f"{control}={value} does not change the text"
            live.set(**start)
    assert live.png() == picture and live.text == text


@pytest.mark.parametrize("name", ["load_curve", "monitor_dashboard"])
def test_only_the_first_picture_draws_the_axes(all_widgets, name):
    """What moves is animated: a move then takes tens of milliseconds, and not hundreds."""
    live = all_widgets[name]
    live.set(**live.values)
    for control, widget in live.controls.items():
        before = live.values[control]
        live.set(**{control: others(widget)[0]})
        assert not live.figure.stale, f"{control} makes matplotlib draw the whole figure again"
        live.set(**{control: before})


@pytest.mark.parametrize("rate", [0.5, 3.0, 6.0, 60.0])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_without_a_bound_it_is_the_simulation_of_the_engine(rate, slots):
    requests = poisson_requests(1.0, 80, seed=2)
    sped_up = [SimRequest(each.arrival / rate, each.prompt_tokens, each.output_tokens) for each in requests]
    expected = simulate(sped_up, "in_flight", slots, affine_cost(COST.base, COST.per_prompt_token, COST.per_row))
    load = simulate_server(requests, rate, slots, NO_BOUND, COST)
    assert load.answered == 80 and load.refused == 0
    assert load.tokens_per_second == pytest.approx(expected.throughput)
    for mine, theirs in (
        (load.first_token, percentiles([each.ttft for each in expected.results])),
        (load.whole_answer, percentiles([each.latency for each in expected.results])),
    ):
        assert (mine.p50, mine.p95, mine.mean, mine.maximum) == pytest.approx(
            (theirs.p50, theirs.p95, theirs.mean, theirs.maximum)
        )


def test_who_comes_when_all_places_are_taken_is_refused():
    at_once = [SimRequest(0.0, 10, 20)] * 12
    load = simulate_server(at_once, 1.0, 2, 3, COST)
    assert load.answered == 5 and load.refused == pytest.approx(7 / 12)
    patient = [SimRequest(100.0 * k, 10, 20) for k in range(12)]
    assert simulate_server(patient, 1.0, 1, 0, COST).refused == 0


def test_a_place_is_free_when_the_last_step_of_a_request_is_over():
    prefill = COST.base + 10 * COST.per_prompt_token
    done = prefill + 3 * (COST.base + COST.per_row)  # four tokens: the first by the prompt's step
    for arrival, refused in ((done - 1e-6, 0.5), (done + 1e-6, 0.0)):
        pair = [SimRequest(0.0, 10, 4), SimRequest(arrival, 10, 4)]
        assert simulate_server(pair, 1.0, 1, 0, COST).refused == refused


def test_a_bound_on_the_queue_bounds_the_wait():
    requests = poisson_requests(1.0, 200, (32, 32), (20, 20), seed=1)
    service = 20 * (COST.base + 4 * COST.per_row) + 4 * 32 * COST.per_prompt_token
    for waiting in (0, 8):
        load = simulate_server(requests, 50.0, 4, waiting, COST)
        assert load.whole_answer.maximum <= service * (2 + waiting / 4) + COST.base
    unbounded = simulate_server(requests, 50.0, 4, NO_BOUND, COST)
    assert unbounded.whole_answer.maximum > 10 * service and unbounded.refused == 0


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_capacity_is_what_an_endless_queue_finishes(slots):
    requests = poisson_requests(1.0, 600, seed=3)
    load = simulate_server(requests, 1e6, slots, NO_BOUND, COST)
    tokens = sum(each.output_tokens for each in requests)
    assert load.tokens_per_second / tokens * 600 == pytest.approx(capacity(requests, slots, COST), rel=0.05)


def test_load_curve_tells_what_the_simulation_gives_and_where_it_was_measured(all_widgets):
    live = all_widgets["load_curve"]
    rate = live.controls["rate"].options[-1][1]
    live.set(rate=rate, max_num_seqs=2, max_waiting=4, latency="whole answer")
    load = simulate_server(poisson_requests(1.0, 40, (16, 64), (4, 32)), rate, 2, 4, COST)
    assert f"{load.tokens_per_second:,.0f} tokens/s, {widgets.percent(load.refused)} refused" in live.text
    assert f"{widgets._seconds(load.whole_answer.p95)} for 95 %" in live.text
    assert "0 measured points" in live.text
    live.set(max_num_seqs=8, max_waiting=16)
    assert "2 measured points" in live.text


def test_measured_rows_must_be_whole():
    with pytest.raises(ValueError, match="refused is missing"):
        widgets.load_curve(COST, measured=[{name: 1.0 for name in widgets.MEASURED_COLUMNS if name != "refused"}])
    with pytest.raises(ValueError, match="base must be above 0"):
        StepSeconds(0.0, 1.0, 1.0)


def test_the_monitor_looks_at_its_window_only(all_widgets):
    live = all_widgets["monitor_dashboard"]
    live.set(minute=live.controls["minute"].options[-1][1], window=15)
    now = 60 * live.controls["minute"].value
    inside = [0.2 + (k * 37 % 100) / 50 for k in range(240) if now - 15 <= k / 2 <= now]
    summary = percentiles(inside)
    assert f"{len(inside)} requests: mean {widgets._seconds(summary.mean)}" in live.text
    assert f"95th percentile {widgets._seconds(summary.p95)}, 99th {widgets._seconds(summary.p99)}" in live.text


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


def test_who_comes_at_the_very_end_of_a_request_finds_its_place_free():
    even = StepSeconds(0.25, 0.0, 0.0)  # sums of quarters are exact
    pair = [SimRequest(0.0, 10, 4), SimRequest(1.0, 10, 4)]
    assert simulate_server(pair, 1.0, 1, 0, even).refused == 0


def test_measured_points_are_drawn_where_they_were_measured(all_widgets):
    live = all_widgets["load_curve"]
    live.set(max_num_seqs=8, max_waiting=16)
    squares = [line.get_xydata().tolist() for line in live.figure.axes[0].lines if line.get_marker() == "s"]
    assert squares == [[[1.0, 30.0], [3.0, 90.0]]]
    live.set(max_num_seqs=4)
    assert [len(line.get_xdata()) for line in live.figure.axes[0].lines if line.get_marker() == "s"] == [0]
