"""One outlier sets the scale of all: the levels that INT8 and FP8 leave for the other values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.collections import LineCollection
from torch import Tensor

from labsupport.quantization import fake_quantize
from labsupport.quantization.fp8 import fp8_codes, fp8_fake_quantize, fp8_format
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    LIGHT_GREY,
    VERMILION,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
)

GRIDS = {"INT8": (VERMILION, "s--"), "E4M3": (BLUE, "o-"), "E5M2": (GREEN, "D:")}


def fp8_outlier(values: Mapping[str, Float[Tensor, "*shape"]] | None = None) -> Live:
    """One outlier sets the scale for all: what is left for the others on INT8's uniform and FP8's non-uniform grids.

    values: tensors by name, scaled to an RMS of 1; None: a bell curve. The slider sets the size of the outlier that is
    added to each, in multiples of the RMS.
    """
    named = {"bell curve": torch.randn(4096, generator=torch.Generator().manual_seed(0))} if values is None else values
    named = {name: _in_units_of_rms(x) for name, x in named.items()}
    outliers = [8 * 2**k for k in range(11)]
    edges = np.linspace(-4, 4, 65)

    @cache
    def measure(values: str, outlier: int) -> dict[str, tuple[float, float]]:
        """Of each grid: RMS error of the ordinary values, and the share of them that become 0."""
        x = torch.cat([named[values], torch.tensor([float(outlier)])])
        nonzero = x[:-1] != 0
        cast = {"INT8": fake_quantize(x, symmetric=True)[:-1]}
        cast |= {name: fp8_fake_quantize(x, name.lower())[:-1] for name in ("E4M3", "E5M2")}
        return {
            name: (float((y - x[:-1]).square().mean().sqrt()), float((y[nonzero] == 0).float().mean()))
            for name, y in cast.items()
        }

    figure, (left, right) = new_figure(1, 2, height=3.5, width_ratios=[1.25, 1])
    label(left, "Levels where the values are", "value / RMS", "")
    label(right, "Error of the ordinary values", "outlier / RMS", "RMS error / RMS value")
    left.set(xlim=(-4, 4), ylim=(-0.1, 4.6))
    left.set_yticks([2.5, 1.5, 0.5], list(GRIDS))
    left.tick_params(axis="y", length=0)
    left.spines["left"].set_visible(False)
    bars = left.stairs(np.full(64, 3.2), edges, baseline=3.2, fill=True, color=LIGHT_GREY, animated=True)
    rows = {}
    for row, (name, (colour, _)) in enumerate(GRIDS.items()):
        rows[name] = left.add_collection(LineCollection([], colors=colour, linewidths=0.8, animated=True))
        rows[name].set_zorder(2 + row)
    counts = {
        name: left.text(3.98, 2.94 - row, "", ha="right", va="center", fontsize=8, animated=True, zorder=9,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        for row, name in enumerate(GRIDS)
    }  # fmt: skip
    curves = {
        name: right.plot(outliers, np.ones(len(outliers)), style, ms=4, color=colour, label=name, animated=True)[0]
        for name, (colour, style) in GRIDS.items()
    }
    right.set(xscale="log", yscale="log", ylim=(3e-3, 2))
    right.set_xticks(outliers[::2], [f"{n:g}" for n in outliers[::2]], minor=False)
    plain_ticks(right.xaxis, outliers[::2])
    right.set_yticks([0.01, 0.1, 1], ["1 %", "10 %", "100 %"])
    legend(right, loc="lower right")
    here = right.plot([], [], "D", ms=10, mfc="none", mec=BLACK, mew=2.0, animated=True)[0]

    def levels(name: str, outlier: int) -> np.ndarray:
        if name == "INT8":
            grid = np.arange(-127, 128) * (outlier / 127)
        else:
            codes = fp8_codes(name.lower())
            grid = np.unique(codes[codes.isfinite()].numpy()) * (outlier / fp8_format(name.lower()).max)
        return grid[abs(grid) <= 4]

    def update(values: str, outlier: int) -> None:
        density = np.histogram(named[values].numpy(), edges)[0]
        bars.set_data(3.2 + 1.3 * density / density.max(), edges)
        for row, name in enumerate(GRIDS):
            grid = levels(name, outlier)
            rows[name].set_segments([[(x, 2.1 - row), (x, 2.75 - row)] for x in grid])
            counts[name].set_text(f"{len(grid)} levels")
            curves[name].set_ydata([measure(values, each)[name][0] for each in outliers])
        here.set_data([outlier] * len(GRIDS), [measure(values, outlier)[name][0] for name in GRIDS])

    def describe(values: str, outlier: int) -> str:
        told = [
            f"{name}: {len(levels(name, outlier))} levels between -4 and 4, error {percent(error)}, {percent(lost)} "
            "of the values become 0"
            for name, (error, lost) in measure(values, outlier).items()
        ]
        return f"{values[:1].upper()}{values[1:]}, outlier of {outlier} RMS. {'; '.join(told)}."

    choose = ipywidgets.ToggleButtons(options=list(named), description="Values", style={"button_width": "auto"})
    if len(named) == 1:
        choose.layout.display = "none"
    slider = ipywidgets.SelectionSlider(options=outliers, value=64, description="Outlier / RMS")
    return Live(figure, update, describe, values=choose, outlier=slider)


def _in_units_of_rms(x: Tensor, most: int = 20_000) -> Float[Tensor, " n"]:
    x = x.detach().float().flatten()
    if not len(x) or not bool(x.isfinite().all()) or not bool(x.any()):
        raise ValueError("values must hold tensors that are finite, not empty and not all zeros")
    x = x[:: -(-len(x) // most)]
    return x / x.square().mean().sqrt()
