"""The moving pictures of chapter 4's second half: a server under load, and what a monitor says of the last minute.

Whatever a slider asks for is simulated at once; points that were measured on a real server are drawn beside it.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import ipywidgets
import numpy as np

from labsupport.inference.arrivals import SimRequest, poisson_requests
from labsupport.inference.simulate import affine_cost, simulate
from labsupport.serving.monitor import Percentiles, PerformanceMonitor, percentiles
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY_BLUE,
    VERMILION,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
)

NO_BOUND = 10**9  # requests that may wait: as many as come


@dataclass(frozen=True)
class StepSeconds:
    """What a step costs: ``base``, and more for each prompt token that is read and for each row that decodes."""

    base: float
    per_prompt_token: float
    per_row: float

    def __post_init__(self) -> None:
        if self.base <= 0 or min(self.per_prompt_token, self.per_row) < 0:
            raise ValueError(f"base must be above 0 and the others at least 0 seconds; got {self}")


@dataclass(frozen=True)
class Load:
    """What a server did with the requests that were offered, in the units of its three panels."""

    answered: int
    refused: float  # share of the requests
    tokens_per_second: float
    first_token: Percentiles | None  # seconds from arrival
    whole_answer: Percentiles | None


# A server under load --------------------------------------------------------------------------------------------------

LATENCIES = {"first token": "first_token", "whole answer": "whole_answer"}
MEASURED_COLUMNS = ("max_num_seqs", "max_waiting", "rate", "tokens_per_second", "refused",
                    "first_token_p50", "first_token_p95", "whole_answer_p50", "whole_answer_p95")  # fmt: skip


def load_curve(
    cost: StepSeconds | None = None,
    requests: Sequence[SimRequest] | None = None,
    measured: Sequence[Mapping[str, float]] = (),
) -> Live:
    """Tokens a second, refusals and latency of a server as more is asked of it.

    cost: of the simulated steps; None: 20 ms, 0.5 ms a prompt token and 1 ms a row.
    requests: arriving at one a second on average; a rate of r plays them r times as fast. None: 120 drawn ones.
    measured: rows with `MEASURED_COLUMNS`; those with the limits that the sliders stand at are shown.

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
        plain_ticks(axis.xaxis, _decades(rates[0], rates[-1]))
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
        # without it the picture would not follow the slider while nobody is refused
        room.set_text(f"{_room(max_waiting)} may wait")

    def describe(rate: float, max_num_seqs: int, max_waiting: int, latency: str) -> str:
        load = at(rate, max_num_seqs, max_waiting)
        waited: Percentiles | None = getattr(load, LATENCIES[latency])
        told = "nobody is answered" if waited is None else (
            f"{latency} after {_seconds(waited.p50)} for half of them, {_seconds(waited.p95)} for 95 %"
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


def simulate_server(
    requests: Sequence[SimRequest], rate: float, max_num_seqs: int, max_waiting: int, cost: StepSeconds
) -> Load:
    """In-flight batching behind a bounded queue; the ``requests`` arrive ``rate`` times as fast as they say.

    As `labsupport.inference.simulate.simulate` with the policy "in_flight", and with refusals: whoever comes while
    ``max_num_seqs`` + ``max_waiting`` requests are unfinished goes away. Steps in which nothing changes are taken
    together, so that a slider's move costs milliseconds.
    """
    arrivals = [(request.arrival / rate, request) for request in sorted(requests, key=lambda each: each.arrival)]
    waiting: deque[tuple[float, SimRequest]] = deque()
    running: list[tuple[int, int, float]] = []  # step after which it is done, number, arrival
    firsts: list[float] = []
    wholes: list[float] = []
    tokens = 0
    clock, step, coming = 0.0, 0, 0

    def arrive(until: float) -> None:
        nonlocal coming
        while coming < len(arrivals) and arrivals[coming][0] <= until:
            if len(running) + len(waiting) < max_num_seqs + max_waiting:
                waiting.append(arrivals[coming])
            coming += 1

    while coming < len(arrivals) or waiting or running:
        if not running and not waiting:
            clock = max(clock, arrivals[coming][0])
            arrive(clock)
        rows, prompts = len(running), 0
        new: list[float] = []
        while waiting and len(running) < max_num_seqs:
            arrival, request = waiting.popleft()
            heapq.heappush(running, (step + request.output_tokens, len(firsts) + len(new), arrival))
            new.append(arrival)
            prompts += request.prompt_tokens
            tokens += request.output_tokens
        seconds = cost.base + cost.per_prompt_token * prompts + cost.per_row * rows
        steps = 1
        if not new:
            steps = running[0][0] - step
            if len(running) < max_num_seqs and coming < len(arrivals):  # whoever comes next is admitted at once
                steps = min(steps, max(1, math.ceil((arrivals[coming][0] - clock) / seconds)))
        arrive(math.nextafter(clock + steps * seconds, 0))  # they meet those who are done by the end of it
        clock, step = clock + steps * seconds, step + steps
        firsts += [clock - arrival for arrival in new]
        while running and running[0][0] == step:
            wholes.append(clock - heapq.heappop(running)[2])
        arrive(clock)
    answered = len(wholes)
    return Load(
        answered, 1 - answered / len(arrivals), tokens / (clock - arrivals[0][0]), percentiles(firsts),
        percentiles(wholes),
    )  # fmt: skip


def capacity(requests: Sequence[SimRequest], max_num_seqs: int, cost: StepSeconds) -> float:
    """Requests a second that a full batch finishes."""
    prompt = sum(request.prompt_tokens for request in requests) / len(requests)
    output = sum(request.output_tokens for request in requests) / len(requests)
    # each request shares its steps with the others of a full batch, and adds its prompt and its rows
    return 1 / (cost.base * output / max_num_seqs + cost.per_prompt_token * prompt + cost.per_row * (output - 1))


# What a monitor says --------------------------------------------------------------------------------------------------


def monitor_dashboard(events: Sequence[tuple[float, float]] | None = None, threshold: float = 4.0) -> Live:
    """Mean and percentiles of a sliding window over the latencies of a server, by `PerformanceMonitor`.

    events: (when a request was done, its latency) in seconds, ordered. None: ten simulated minutes with a rush.
    threshold: seconds that somebody wants 95 % of the requests to stay below.
    """
    seen = ten_minutes() if events is None else list(events)
    end = 60 * math.ceil(seen[-1][0] / 60)
    ticks = np.linspace(0, end, 121)
    windows = [(5, "5 s"), (15, "15 s"), (60, "1 min"), (300, "5 min")]

    @cache
    def watch(window: float) -> list[Percentiles | None]:
        now = 0.0
        monitor = PerformanceMonitor(window, clock=lambda: now, gpus=lambda: None)
        told, coming = [], 0
        for tick in ticks:
            while coming < len(seen) and seen[coming][0] <= tick:
                now = seen[coming][0]
                monitor.record(e2e_latency=seen[coming][1])
                coming += 1
            now = float(tick)
            told.append(monitor.summary().e2e_latency)
        return told

    figure, (over_time, now_bars) = new_figure(1, 2, height=3.7, width_ratios=[2.6, 1])
    label(over_time, "Latency of each request, and of the window", "minutes", "seconds")
    label(now_bars, "The window says")
    times, latencies = (np.array(each) for each in zip(*seen, strict=True))
    low, high = latencies.min() / 1.5, latencies.max() * 3
    over_time.set(xlim=(0, end / 60), ylim=(low, high), yscale="log")
    plain_ticks(over_time.yaxis, [t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low < t < high])
    over_time.plot(times / 60, latencies, ".", color=GREY, alpha=0.35, ms=3, zorder=1)
    over_time.axhline(threshold, color=BLACK, lw=1.1, ls=(0, (1, 2)), zorder=1, label=f"{threshold:g} s")
    band = over_time.axvspan(0, 1, ymax=0.88, color=SKY_BLUE, alpha=0.3, zorder=0, animated=True)
    styles = {"mean": (GREEN, ":"), "median": (BLUE, "-"), "95th": (ORANGE, "--"), "99th": (VERMILION, "-.")}
    fields = {"mean": "mean", "median": "p50", "95th": "p95", "99th": "p99"}
    curves = {
        name: over_time.plot(ticks / 60, np.ones(len(ticks)), style, color=colour, label=name, animated=True)[0]
        for name, (colour, style) in styles.items()
    }
    legend(over_time, loc="upper left", ncols=5, columnspacing=1.0, handlelength=1.6)
    now_bars.set(yscale="log", ylim=(low, high), yticks=[])
    now_bars.minorticks_off()
    now_bars.spines["left"].set_visible(False)
    now_bars.axhline(threshold, color=BLACK, lw=1.1, ls=":", zorder=3)
    bars = now_bars.bar(list(styles), [1.0] * 4, width=0.62, color=[each[0] for each in styles.values()], animated=True)
    texts = [now_bars.text(k, 1, "", ha="center", va="bottom", fontsize=9, animated=True) for k in range(4)]

    def at(minute: float, window: float) -> Percentiles | None:
        return watch(window)[int(np.argmin(abs(ticks - 60 * minute)))]

    def update(minute: float, window: float) -> None:
        told = watch(window)
        for name, curve in curves.items():
            curve.set_ydata([math.nan if each is None else getattr(each, fields[name]) for each in told])
        left = max(0.0, minute - window / 60)
        band.set_x(left)
        band.set_width(minute - left)
        summary = at(minute, window)
        for bar, text, name in zip(bars, texts, styles, strict=True):
            value = math.nan if summary is None else getattr(summary, fields[name])
            bar.set_height(0 if summary is None else value)
            text.set_y(low if summary is None else value)
            text.set_text("none" if summary is None else _seconds(value))

    def describe(minute: float, window: float) -> str:
        summary = at(minute, window)
        name = dict(windows)[int(window)]
        if summary is None:
            return f"Minute {minute:g}, window {name}: nothing in the window, so nothing is said."
        told = [each.p95 > threshold for each in watch(window) if each is not None]
        return (
            f"Minute {minute:g}, window {name}, {summary.count} requests: mean {_seconds(summary.mean)}, median "
            f"{_seconds(summary.p50)}, 95th percentile {_seconds(summary.p95)}, 99th {_seconds(summary.p99)}. In the "
            f"{end // 60} minutes the 95th percentile crosses {threshold:g} s {_crossings(told)} times."
        )

    minutes = [end / 60 * k / 40 for k in range(1, 41)]
    return Live(
        figure,
        update,
        describe,
        minute=ipywidgets.SelectionSlider(
            options=[(f"{minute:.2f}", minute) for minute in minutes], value=minutes[21], description="Minute"
        ),
        window=ipywidgets.SelectionSlider(
            options=[(name, each) for each, name in windows], value=60, description="Window"
        ),
    )  # fmt: skip


def ten_minutes(seed: int = 5) -> list[tuple[float, float]]:
    """When each request of a simulated server is done and how long it took: a steady load, with a rush in the middle.

    One in thirty wants a long answer, as somewhere it always is.
    """
    draw, times, clock = np.random.default_rng(seed), [], 0.0
    while (clock := clock + draw.exponential(1 / (5.5 if 300 < clock < 330 else 1.2))) < 600:
        times.append(clock)
    prompts, outputs = draw.integers(16, 257, len(times)), draw.integers(8, 65, len(times))
    outputs[draw.random(len(times)) < 1 / 30] = 256
    requests = [SimRequest(at, int(p), int(o)) for at, p, o in zip(times, prompts, outputs, strict=True)]
    run = simulate(requests, "in_flight", 6, affine_cost(0.02, 5e-4, 1e-3))
    return sorted((each.completed, each.latency) for each in run.results if each.completed < 600)


# Helpers --------------------------------------------------------------------------------------------------------------


def _crossings(above: Sequence[bool]) -> int:
    return sum(later and not earlier for earlier, later in zip([False, *above], above, strict=False))


def _decades(low: float, high: float) -> list[float]:
    ticks = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 3)]
    return [tick for tick in ticks if low <= tick <= high]


def _room(max_waiting: int) -> str:
    return "any number" if max_waiting == NO_BOUND else f"{max_waiting}"


def _round(value: float) -> float:
    return float(f"{value:.2g}")


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.3g} s"


__all__ = ["Load", "StepSeconds", "capacity", "load_curve", "monitor_dashboard", "simulate_server", "ten_minutes"]
