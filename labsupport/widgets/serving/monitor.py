"""What `labsupport.serving.monitor` says of the last seconds or minutes of a server's life."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import ipywidgets
import numpy as np

from labsupport.inference.simulate import SimRequest, affine_cost, simulate
from labsupport.serving.monitor import Percentiles, PerformanceMonitor
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    SKY_BLUE,
    VERMILION,
    duration,
    label,
    legend,
    new_figure,
    plain_ticks,
)


def monitor_dashboard(events: Sequence[tuple[float, float]] | None = None, threshold: float = 4.0) -> Live:
    """Mean and percentiles of a sliding window over the latencies of a server, by `PerformanceMonitor`.

    events: (when a request was done, its latency) in seconds, ordered. None: ten simulated minutes with a rush.
    threshold: the latency in seconds that 95 % of the requests should stay below.
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

    figure, (over_time, right_now) = new_figure(1, 2, height=3.7, width_ratios=[2.6, 1])
    label(over_time, "Latency of each request, and of the window", "minutes", "seconds")
    label(right_now, "The window says")
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
    right_now.set(yscale="log", ylim=(low, high), xlim=(-0.6, 3.6), yticks=[])
    right_now.set_xticks(range(4), list(styles))
    right_now.minorticks_off()
    right_now.spines["left"].set_visible(False)
    right_now.axhline(threshold, color=BLACK, lw=1.1, ls=":", zorder=3)
    # points, not bars: a logarithmic axis has no zero from which a bar could begin
    points = [
        right_now.plot([k], [1.0], marker, ms=9, color=styles[name][0], animated=True)[0]
        for k, (name, marker) in enumerate(zip(styles, MARKERS, strict=False))
    ]
    texts = [right_now.text(k, 1, "", ha="center", va="bottom", fontsize=9, animated=True) for k in range(4)]

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
        for point, text, name in zip(points, texts, styles, strict=True):
            value = math.nan if summary is None else getattr(summary, fields[name])
            point.set_ydata([value])
            text.set_y(1.1 * low if summary is None else 1.25 * value)
            text.set_text("none" if summary is None else duration(value))

    def describe(minute: float, window: float) -> str:
        summary = at(minute, window)
        name = dict(windows)[int(window)]
        if summary is None:
            return f"Minute {minute:g}, window {name}: nothing in the window, so nothing is said."
        told = [each.p95 > threshold for each in watch(window) if each is not None]
        return (
            f"Minute {minute:g}, window {name}, {summary.count} requests: mean {duration(summary.mean)}, median "
            f"{duration(summary.p50)}, 95th percentile {duration(summary.p95)}, 99th {duration(summary.p99)}. In the "
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
    """(completion, latency) of each request of a simulated server, in seconds: steady load with a rush in the middle.

    One in thirty asks for a long answer, as some requests always do.
    """
    draw, times, clock = np.random.default_rng(seed), [], 0.0
    while (clock := clock + draw.exponential(1 / (5.5 if 300 < clock < 330 else 1.2))) < 600:
        times.append(clock)
    prompts, outputs = draw.integers(16, 257, len(times)), draw.integers(8, 65, len(times))
    outputs[draw.random(len(times)) < 1 / 30] = 256
    requests = [SimRequest(at, int(p), int(o)) for at, p, o in zip(times, prompts, outputs, strict=True)]
    run = simulate(requests, "in_flight", 6, affine_cost(0.02, 5e-4, 1e-3))
    return sorted((each.completed, each.latency) for each in run.results if each.completed < 600)


def _crossings(above: Sequence[bool]) -> int:
    return sum(later and not earlier for earlier, later in zip([False, *above], above, strict=False))
