"""What magnitude pruning removes, what that costs and what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
from jaxtyping import Float
from matplotlib.colors import ListedColormap
from torch import Tensor

from labsupport.pruning.magnitude import magnitude_mask
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLUE,
    CYCLE,
    LIGHT_GREY,
    MARKERS,
    VERMILION,
    label,
    legend,
    new_figure,
    plain_ticks,
    round_ticks,
)

if TYPE_CHECKING:
    import pandas as pd


KEPT_OR_NOT = ListedColormap(["#FFFFFF", BLUE])


def sparsity(weight: Float[Tensor, "out in"], measured: pd.DataFrame, quality: str, times: Sequence[str]) -> Live:
    """What magnitude pruning removes, what it costs in quality, and what it saves in milliseconds, side by side.

    weight: a layer's weight, for mask and histogram.
    measured: indexed by sparsity (0 to 1), a row for each position of the slider; a column named `quality` (which
        labels the axis), and the columns `times` in milliseconds.
    """
    weight = weight.detach().float()
    shown = weight[:48, :72]
    shares = [float(share) for share in measured.index]
    values = measured[quality].to_numpy(dtype=float)
    edges = np.linspace(-1, 1, 61) * float(weight.abs().max())
    everything = np.histogram(weight.numpy(), edges)[0]

    @cache
    def pruned(share: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Which of the shown weights stay, the histogram of all that stay, and the largest that goes."""
        mask = magnitude_mask(weight, share)
        largest = float(weight[~mask].abs().max()) if not bool(mask.all()) else 0.0
        kept = np.histogram(weight[mask].numpy(), edges)[0]
        return mask[: shown.shape[0], : shown.shape[1]].numpy(), kept, largest

    figure, axes = new_figure("AB;CD", height=5.0, height_ratios=[1.1, 1])
    left, right, below, beside = axes["A"], axes["B"], axes["C"], axes["D"]
    label(left, "Mask: what stays is blue", "input channel", "output channel")
    label(right, "Weights", "weight", "number of weights")
    label(below, "What it costs", "zeros [%]", quality)
    label(beside, "What it brings", "zeros [%]", "milliseconds")
    picture = left.imshow(
        np.ones(shown.shape), cmap=KEPT_OR_NOT, vmin=0, vmax=1, aspect="auto", interpolation="nearest", animated=True
    )
    right.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.08 * everything.max()))
    right.stairs(everything, edges, fill=True, color=LIGHT_GREY, label="zeroed")
    bars = right.stairs(everything, edges, fill=True, color=BLUE, animated=True, label="kept")
    legend(right, loc="upper right")
    below.plot(np.array(shares) * 100, values, "o-", ms=3.5, color=BLUE)
    if values.max() > 4 * values.min() > 0:
        below.set_yscale("log")
        plain_ticks(below.yaxis, round_ticks(0.9 * values.min(), 1.1 * values.max()))
    here = below.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]
    for name, colour, marker in zip(times, CYCLE, MARKERS, strict=False):
        beside.plot(np.array(shares) * 100, measured[name], f"{marker}-", ms=3.5, color=colour, label=name)
    beside.set_ylim(0, 1.25 * float(measured[list(times)].to_numpy().max()))
    legend(beside, loc="lower left")
    marks = beside.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]

    def update(zeros: float) -> None:
        mask, kept, _ = pruned(zeros)
        picture.set_data(mask)
        bars.set_data(kept)
        row = shares.index(zeros)
        here.set_data([100 * zeros], [values[row]])
        marks.set_data([100 * zeros] * len(times), [measured[name].iloc[row] for name in times])

    def describe(zeros: float) -> str:
        row, dense = shares.index(zeros), measured.iloc[0]
        took = "; ".join(
            f"{name}: {measured[name].iloc[row]:.3g} ms, {dense[name] / measured[name].iloc[row]:.2f} times as fast"
            for name in times
        )
        limit = f", all of magnitude up to {pruned(zeros)[2]:.3g}" if zeros else ""
        return f"{100 * zeros:.0f} % zeros{limit}. {quality}: {values[row]:.4g} (dense {values[0]:.4g}). {took}."

    choices = [(f"{100 * share:.0f} %", share) for share in shares]
    start = shares[len(shares) // 2]
    return Live(
        figure,
        update,
        describe,
        zeros=ipywidgets.SelectionSlider(options=choices, value=start, description="Zeros"),
    )
