"""Values, the quantization grid they are rounded to, and the error, side by side."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import ipywidgets
import numpy as np
import torch

from labsupport.quantization.affine import dequantize, qparams_from_range, quantize
from labsupport.widgets.live import Live
from labsupport.widgets.quantization.tensors import Values, by_name, choose, power_of, sample, start_of
from labsupport.widgets.style import BLACK, BLUE, GREY, SKY_BLUE, VERMILION, label, new_figure, percent


def quantization_grid(values: Values) -> Live:
    """Values, the grid they are rounded to, and the error: how bits, range, an outlier and symmetry change all three.

    values: one tensor of any shape, or several by name (say weights, and activations after SiLU) to switch between.
    """
    named = {name: sample(x) for name, x in by_name(values).items()}
    shown_error = 2.0  # in half steps, either side
    error_edges = np.linspace(-shown_error, shown_error, 41)
    value_edges = np.linspace(-1.0, 1.0, 81)
    shown = {name: _spread(x.numpy(), 4000) for name, x in named.items()}

    @lru_cache(maxsize=64)
    def measure(values: str, bits: int, outlier: int, kept_range: int, symmetric: bool) -> SimpleNamespace:
        largest = float(named[values].abs().max())
        x = named[values] / largest
        n = len(x)
        if outlier:
            x = torch.cat([x, torch.tensor([float(outlier)])])
        low, high = x.min() * kept_range / 100, x.max() * kept_range / 100
        qparams = qparams_from_range(low, high, bits, symmetric)
        error = dequantize(quantize(x, qparams), qparams) - x
        codes = torch.arange(qparams.qmin, qparams.qmax + 1)
        levels = ((codes - qparams.zero_point) * qparams.scale).numpy()
        half = float(qparams.scale) / 2
        inside = (x >= levels[0] - half) & (x <= levels[-1] + half)
        return SimpleNamespace(
            x=x.numpy(),
            error=error.numpy(),
            levels=levels,
            half=half,
            step=2 * half * largest,
            clipped=1 - float(inside.float().mean()),
            worst=float(error[inside].abs().max()) / half,
            # The outlier is there to harm the other values: their error is what counts.
            rms=math.sqrt(power_of(error[:n])) * largest,
            signal_to_noise=10 * math.log10(power_of(x[:n]) / max(power_of(error[:n]), 1e-30)),
        )

    figure, axes = new_figure("AC;BC", height=4.4, width_ratios=[2.1, 1], height_ratios=[1, 1.15])
    top, bottom, right = axes["A"], axes["B"], axes["C"]
    label(top, "Values and grid", "", "number of values")
    label(bottom, "Error of each value", "value / largest |value|", "|error| / largest |value|")
    label(right, "Errors, in half steps", "error [half steps]", "share of values")
    top.set(xlim=(-1.08, 1.08), yscale="log", ylim=(0.7, 2 * max(len(x) for x in named.values())))
    top.tick_params(labelbottom=False)
    bottom.set(xlim=(-1.08, 1.08), yscale="log", ylim=(1e-5, 3))
    right.set(xlim=(-shown_error, shown_error), ylim=(0, 0.25))
    right.set_yticks([0, 0.05, 0.1, 0.15, 0.2, 0.25], ["0", "5 %", "10 %", "15 %", "20 %", "25 %"])
    bars = top.stairs(np.zeros(80), value_edges, baseline=0.5, fill=True, color=SKY_BLUE, animated=True)
    grid = top.vlines([0.0], 0, 1, transform=top.get_xaxis_transform(), color=BLACK, lw=0.8, animated=True)
    note = top.text(0.985, 0.94, "", transform=top.transAxes, ha="right", va="top", color=VERMILION, animated=True)
    dots = bottom.plot([], [], ".", ms=3, color=BLUE, alpha=0.5, mew=0, animated=True)[0]
    bound = bottom.axhline(1, color=VERMILION, ls="--", lw=1.6, animated=True)
    bound_text = bottom.text(-1.05, 1, "half a step", color=VERMILION, va="bottom", animated=True)
    errors = right.stairs(np.zeros(40), error_edges, fill=True, color=BLUE, animated=True)
    for side in (-1, 1):
        right.axvline(side, color=VERMILION, ls="--", lw=1.6)
    beyond = right.text(0.5, 0.97, "", transform=right.transAxes, ha="center", va="top", color=VERMILION, animated=True)
    beyond.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 2.0})

    def update(**controls: Any) -> None:
        m = measure(**controls)
        bars.set_data(np.histogram(m.x, value_edges)[0] + 0.5)
        grid.set_segments([[(level, 0), (level, 1)] for level in m.levels if abs(level) <= 1.08])
        grid.set(linewidth=0.8, color=BLACK) if len(m.levels) <= 32 else grid.set(linewidth=0.35, color=GREY)
        outlier = controls["outlier"]
        note.set_text(f"outlier at {outlier} →" if outlier else "")
        picked = shown[controls["values"]]
        dots.set_data(m.x[picked], np.maximum(np.abs(m.error[picked]), 1.2e-5))
        bound.set_ydata([m.half, m.half])
        bound_text.set_y(m.half * 1.15)
        in_half_steps = m.error / m.half
        shares = np.histogram(in_half_steps, error_edges)[0] / len(m.error)
        errors.set_data(shares)
        outside = float((np.abs(in_half_steps) > shown_error).mean())
        notes = [f"tallest bar: {percent(shares.max())}"] if shares.max() > 0.25 else []
        notes += [f"{percent(outside)} lie beyond"] if outside else []
        beyond.set_text("\n".join(notes))

    def describe(values: str, bits: int, outlier: int, kept_range: int, symmetric: bool) -> str:
        m = measure(values, bits, outlier, kept_range, symmetric)
        kind = "symmetric" if symmetric else "asymmetric"
        extra = f", with an outlier {outlier} times the largest value" if outlier else ""
        return (
            f"{start_of(values)}{bits} bits, {kind}, {kept_range} % of the range{extra}: {len(m.levels)} levels, "
            f"step {m.step:.3g}; RMS error {m.rms:.3g}, signal to noise {m.signal_to_noise:.1f} dB; "
            f"worst error inside the range {m.worst:.2f} half steps; {percent(m.clipped)} of the values are clipped."
        )

    return Live(
        figure,
        update,
        describe,
        values=choose(named),
        bits=ipywidgets.IntSlider(value=4, min=2, max=8, description="Bits"),
        outlier=ipywidgets.SelectionSlider(
            options=[("none", 0), *((f"{k} × largest", k) for k in (2, 4, 8, 16))], description="Outlier"
        ),
        kept_range=ipywidgets.IntSlider(value=100, min=10, max=100, step=5, description="Range kept [%]"),
        symmetric=False,
    )


def _spread(x: np.ndarray, n: int) -> np.ndarray:
    """Indices of about n values to draw: half spread by rank, half along the axis, so that the tails appear too."""
    order = x.argsort()
    along = np.searchsorted(x[order], np.linspace(x.min(), x.max(), n // 2)).clip(0, len(x) - 1)
    by_rank = np.linspace(0, len(x) - 1, n // 2).astype(int)
    return order[np.unique(np.concatenate([along, by_rank]))]
