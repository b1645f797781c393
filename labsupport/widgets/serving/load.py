"""A server under load: throughput, refusals and latency as more is asked of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import ipywidgets

from labsupport.inference.arrivals import poisson_requests
from labsupport.inference.simulate import SimRequest
from labsupport.serving.monitor import Percentiles
from labsupport.widgets.live import Live
from labsupport.widgets.serving.server import NO_BOUND, Load, StepSeconds, capacity, simulate_server
from labsupport.widgets.style import (
    BLUE,
    GREY,
    VERMILION,
    duration,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
    round_ticks,
)

LATENCIES = {"first token": "first_token", "whole answer": "whole_answer"}
MEASURED_COLUMNS = ("max_num_seqs", "max_waiting", "rate", "tokens_per_second", "refused",
                    "first_token_p50", "first_token_p95", "whole_answer_p50", "whole_answer_p95")  # fmt: skip


def load_curve(
    cost: StepSeconds | None = None,
    requests: Sequence[SimRequest] | None = None,
    measured: Sequence[Mapping[str, float]] = (),
) -> Live:
    """Tokens per second, refusals and latency of a server as the load grows.

    cost: of the simulated steps; None: 20 ms, 0.5 ms a prompt token and 1 ms a row.
    requests: arriving at one per second on average; at a rate of r they arrive r times as fast. None: 120 random ones.
    measured: rows with `MEASURED_COLUMNS`; shown are those with the limits that the sliders are set to.

    Raises:
        ValueError: a measured row lacks a column.
    """
    cost = StepSeconds(0.02, 5e-4, 1e-3) if cost is None else cost
    offered = poisson_requests(1.0, 120, (16, 256), (8, 64)) if requests is None else list(requests)
    for row in measured:
        if missing := [name for name in MEASURED_COLUMNS if name not in row]:
            raise ValueError(f"measured must have {', '.join(MEASURED_COLUMNS)} in each row; {missing[0]} is missing")
    limits = sorted({1, 2, 4, 8, 16, 32} | {int(row["max_num_seqs"]) for row in measured})
    bounds = sorted({0, 4, 16, 64} | {int(row["max_waiting"]) for row in measured})
    lowest = _round(capacity(offered, 1, cost) / 4)
    span = 2.5 * capacity(offered, limits[-1], cost) / lowest
    rates = [_round(lowest * span ** (k / 15)) for k in range(16)]

    @cache
    def at(rate: float, max_num_seqs: int, max_waiting: int) -> Load:
        return simulate_server(offered, rate, max_num_seqs, max_waiting, cost)

    most = max(at(rate, limits[-1], NO_BOUND).tokens_per_second for rate in rates)
    figure, axes = new_figure("AB;CB", height=4.3, width_ratios=[1, 1.15], height_ratios=[1.8, 1])
    work, wait, refusals = axes["A"], axes["B"], axes["C"]
    label(work, "Throughput", "", "tokens/s")
    label(wait, "Latency", "requests offered a second", "seconds")
    label(refusals, "Refused (429)", "requests offered a second", "")
    for axis in (work, wait, refusals):
        axis.set(xscale="log", xlim=(rates[0] / 1.15, rates[-1] * 1.15))
        plain_ticks(axis.xaxis, round_ticks(rates[0], rates[-1], (1, 3)))
    work.set_xticklabels([])
    work.set(ylim=(0, most * 1.12))
    refusals.set(ylim=(-0.03, 1.03))
    refusals.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    fastest = at(rates[0], limits[-1], NO_BOUND).first_token
    slowest = at(rates[-1], 1, NO_BOUND).whole_answer
    assert fastest is not None and slowest is not None
    low, high = fastest.p50 / 2, 1.5 * slowest.p95
    wait.set(yscale="log", ylim=(low, high))
    plain_ticks(wait.yaxis, [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)])

    here = [
        axis.axvline(rates[0], color=GREY, alpha=0.3, lw=5, zorder=0, animated=True) for axis in (work, wait, refusals)
    ]
    lines = {
        "tokens": work.plot(rates, rates, "-", color=BLUE, animated=True)[0],
        "p95": wait.plot(rates, rates, "--", color=VERMILION, label="95th percentile", animated=True)[0],
        "p50": wait.plot(rates, rates, "-", color=BLUE, label="median", animated=True)[0],
        "refused": refusals.plot(rates, rates, "-", color=VERMILION, animated=True)[0],
    }
    points = {
        "tokens": work.plot([], [], "s", color=BLUE, mec="white", ms=7, animated=True)[0],
        "p95": wait.plot([], [], "D", color=VERMILION, mec="white", ms=7, animated=True)[0],
        "p50": wait.plot([], [], "s", color=BLUE, mec="white", ms=7, animated=True)[0],
        "refused": refusals.plot([], [], "D", color=VERMILION, mec="white", ms=7, animated=True)[0],
    }
    room = refusals.text(0.03, 0.8, "", transform=refusals.transAxes, fontsize=9, animated=True)
    if measured:
        lines["key"] = wait.plot([], [], "s", color=GREY, mec="white", ms=7, label="measured here")[0]
    legend(wait, loc="upper left")

    def shown(max_num_seqs: int, max_waiting: int) -> list[Mapping[str, float]]:
        return [row for row in measured if (row["max_num_seqs"], row["max_waiting"]) == (max_num_seqs, max_waiting)]

    def update(rate: float, max_num_seqs: int, max_waiting: int, latency: str) -> None:
        played = [at(each, max_num_seqs, max_waiting) for each in rates]
        waits = [getattr(load, LATENCIES[latency]) for load in played]
        lines["tokens"].set_ydata([load.tokens_per_second for load in played])
        lines["refused"].set_ydata([load.refused for load in played])
        lines["p50"].set_ydata([math.nan if each is None else each.p50 for each in waits])
        lines["p95"].set_ydata([math.nan if each is None else each.p95 for each in waits])
        rows, column = shown(max_num_seqs, max_waiting), LATENCIES[latency]
        at_rates = [row["rate"] for row in rows]
        points["tokens"].set_data(at_rates, [row["tokens_per_second"] for row in rows])
        points["refused"].set_data(at_rates, [row["refused"] for row in rows])
        points["p50"].set_data(at_rates, [row[f"{column}_p50"] for row in rows])
        points["p95"].set_data(at_rates, [row[f"{column}_p95"] for row in rows])
        for line in here:
            line.set_xdata([rate, rate])
        # without it the picture would not change with the slider while nothing is refused
        room.set_text(f"{_room(max_waiting)} may wait")

    def describe(rate: float, max_num_seqs: int, max_waiting: int, latency: str) -> str:
        load = at(rate, max_num_seqs, max_waiting)
        waited: Percentiles | None = getattr(load, LATENCIES[latency])
        told = "nobody is answered" if waited is None else (
            f"{latency} after {duration(waited.p50)} for half of them, {duration(waited.p95)} for 95 %"
        )  # fmt: skip
        count = len(shown(max_num_seqs, max_waiting))
        beside = f" {count} measured points have these limits." if measured else ""
        return (
            f"{rate:g} requests a second, {max_num_seqs} at a time, {_room(max_waiting)} may wait: "
            f"{load.tokens_per_second:,.0f} tokens/s, {percent(load.refused)} refused, {told} "
            f"({len(offered)} requests, simulated).{beside}"
        )

    start = measured[0] if measured else {"max_num_seqs": 8, "max_waiting": 16}
    return Live(
        figure,
        update,
        describe,
        rate=ipywidgets.SelectionSlider(
            options=[(f"{rate:g} /s", rate) for rate in rates], value=rates[9], description="Load"
        ),
        max_num_seqs=ipywidgets.SelectionSlider(
            options=limits, value=int(start["max_num_seqs"]), description="Batch limit"
        ),
        max_waiting=ipywidgets.SelectionSlider(
            options=[*((str(each), each) for each in bounds), ("no bound", NO_BOUND)],
            value=int(start["max_waiting"]), description="May wait",
        ),
        latency=ipywidgets.ToggleButtons(
            options=list(LATENCIES), description="Latency to", style={"button_width": "auto"}
        ),
    )  # fmt: skip


def _room(max_waiting: int) -> str:
    return "any number" if max_waiting == NO_BOUND else f"{max_waiting}"


def _round(value: float) -> float:
    return float(f"{value:.2g}")
