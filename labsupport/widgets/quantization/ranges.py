"""Where the observers end the range, and the error that follows."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import ipywidgets
import numpy as np
import torch
from torch import Tensor

from labsupport.quantization.affine import fake_quantize, qparams_from_range
from labsupport.quantization.observers import MSEObserver, PercentileObserver
from labsupport.widgets.live import Live
from labsupport.widgets.quantization.tensors import Values, by_name, choose, power_of, sample, start_of
from labsupport.widgets.style import (
    BLUE,
    GREY,
    PURPLE,
    SKY_BLUE,
    VERMILION,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
    round_ticks,
)


def observer_ranges(values: Values) -> Live:
    """Where to end the range: at the largest value, at a percentile, or where the mean squared error is smallest.

    values: activations, or several tensors by name. The grids are symmetric, so that one number is the range.
    """
    named = {name: sample(x) for name, x in by_name(values).items()}
    percentiles = (90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)

    @cache
    def experiment(values: str, bits: int) -> SimpleNamespace:
        x = named[values]
        observer = MSEObserver(bits, symmetric=True)
        observer.observe(x)
        qparams = observer.qparams()
        largest = float(x.abs().max())
        thresholds = largest * 2.0 ** np.linspace(-10, 0, 61)
        errors = np.array([relative_error(x, float(end), bits) for end in thresholds])
        best = float(qparams.scale) * qparams.qmax
        return SimpleNamespace(largest=largest, thresholds=thresholds / largest, errors=errors, best=best)

    @cache
    def measure(values: str, bits: int, percentile: float) -> SimpleNamespace:
        x, e = named[values], experiment(values, bits)
        observer = PercentileObserver(bits, symmetric=True, percentile=percentile)
        observer.observe(x)
        qparams = observer.qparams()
        ends = {"min–max": e.largest, "percentile": float(qparams.scale) * qparams.qmax, "MSE": e.best}
        return SimpleNamespace(
            ends={name: end / e.largest for name, end in ends.items()},
            errors={name: relative_error(x, end, bits) for name, end in ends.items()},
            clipped={name: float((x.abs() > end * 1.0001).float().mean()) for name, end in ends.items()},
            largest=e.largest,
        )

    def relative_error(x: Tensor, end: float, bits: int) -> float:
        qparams = qparams_from_range(torch.tensor(-end), torch.tensor(end), bits, symmetric=True)
        return power_of(fake_quantize(x, qparams) - x) / power_of(x)

    looks = {"MSE": (BLUE, "-", "o", 7), "percentile": (PURPLE, "-.", "D", 9), "min–max": (VERMILION, "--", "s", 10)}
    edges = 2.0 ** np.linspace(-10, 0, 61)
    figure, (top, bottom) = new_figure(2, 1, height=4.4, sharex=True, height_ratios=[1, 1.2])
    label(top, "How many values are how large", "", "number of values")
    label(bottom, "Error if the range ends there", "end of the range / largest |value|", "error [% of power]")
    bottom.set_xscale("log", base=2)
    bottom.set(xlim=(2.0**-10, 1.15), yscale="log")
    bottom.set_xticks([2.0**k for k in range(-10, 1, 2)], ["1/1024", "1/256", "1/64", "1/16", "1/4", "1"])
    top.set(yscale="log", ylim=(0.7, 2 * max(len(x) for x in named.values())))
    bars = top.stairs(np.zeros(60), edges, baseline=0.5, fill=True, color=SKY_BLUE, animated=True)
    curve = bottom.plot(edges, np.ones(61), color=GREY, animated=True)[0]
    verticals, markers = {}, {}
    for name, (colour, style, marker, size) in looks.items():
        verticals[name] = top.axvline(1, color=colour, ls=style, animated=True, label=name)
        markers[name] = bottom.plot([1], [1], marker, ms=size, color=colour, mec="white", animated=True)[0]
        markers[name].set_zorder(4 - size / 10)  # where two choices agree, both are visible
    legend(top, loc="lower right", ncols=3, bbox_to_anchor=(1.0, 0.99), borderaxespad=0)

    drawn: list[tuple[str, int]] = []

    def update(values: str, bits: int, percentile: float) -> None:
        m, e = measure(values, bits, percentile), experiment(values, bits)
        bars.set_data(np.histogram(named[values].abs().numpy() / m.largest, edges)[0] + 0.5)
        curve.set_data(e.thresholds, 100 * e.errors)
        if drawn != [(values, bits)]:  # only other errors move the axis, which ends a little below the curve
            drawn[:] = [(values, bits)]
            low, high = 70 * e.errors.min(), 130
            bottom.set_ylim(low, high)
            plain_ticks(bottom.yaxis, round_ticks(low, high))
        for name in looks:
            verticals[name].set_xdata([m.ends[name]] * 2)
            markers[name].set_data([m.ends[name]], [100 * m.errors[name]])

    def describe(values: str, bits: int, percentile: float) -> str:
        m = measure(values, bits, percentile)
        parts = [
            f"{name if name != 'percentile' else f'percentile {percentile:g}'} ends at {m.ends[name] * m.largest:.3g}, "
            f"error {percent(m.errors[name])}, clips {percent(m.clipped[name])}"
            for name in looks
        ]
        return f"{start_of(values)}{bits} bits: {'; '.join(parts)}."

    return Live(
        figure,
        update,
        describe,
        values=choose(named),
        bits=ipywidgets.IntSlider(value=4, min=2, max=8, description="Bits"),
        percentile=ipywidgets.SelectionSlider(
            options=[(f"{p:g}", p) for p in percentiles], value=99.9, description="Percentile"
        ),
    )
