"""Whole channels: which ones a score removes, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
from jaxtyping import Float
from torch import Tensor

from labsupport.pruning.structured import keep_channels
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


def channel_importance(scores: Mapping[str, Float[Tensor, " channels"]], measured: pd.DataFrame, quality: str) -> Live:
    """Which channels a score would remove, whether scores agree, and what removing them costs.

    scores: by name, one number for each channel of a layer. measured: indexed by the share removed, for each score a
    column with the quality. quality: label of that axis.
    """
    shares = [float(share) for share in measured.index]
    names = list(scores)
    sorted_scores = {name: np.sort(score.detach().float().numpy())[::-1] for name, score in scores.items()}
    channels = len(next(iter(sorted_scores.values())))

    @cache
    def kept(score: str, removed: float) -> Tensor:
        return keep_channels(scores[score].detach().float(), removed)

    figure, (left, right) = new_figure(1, 2, height=3.3, width_ratios=[1.25, 1])
    label(left, "Importance, most important first", "rank of the channel", "share of the largest")
    label(right, "What removing them costs", "channels removed [%]", quality)
    left.set(xlim=(0, channels), ylim=(1e-4, 1.6), yscale="log")
    stays = left.fill_between([0, 1], [1, 1], 1e-4, color=BLUE, animated=True, step="mid")
    goes = left.fill_between([0, 1], [1, 1], 1e-4, color=LIGHT_GREY, animated=True, step="mid")
    edge = left.axvline(0, color=VERMILION, lw=2, animated=True)
    note = left.text(0.97, 0.95, "", transform=left.transAxes, ha="right", va="top", color=VERMILION, animated=True)
    for name, colour, marker in zip(names, CYCLE, MARKERS, strict=False):
        right.plot(np.array(shares) * 100, measured[name], f"{marker}-", ms=4, color=colour, label=name)
    low, high = float(measured[names].to_numpy().min()), float(measured[names].to_numpy().max())
    if high > 4 * low:
        right.set_yscale("log")
        plain_ticks(right.yaxis, round_ticks(0.9 * low, 1.1 * high))
    legend(right, loc="upper left")
    here = right.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]

    def update(score: str, removed: float) -> None:
        values = np.maximum(sorted_scores[score] / sorted_scores[score][0], 1.2e-4)
        num_kept = int(kept(score, removed).sum())
        for area, start, end in ((stays, 0, num_kept), (goes, num_kept, channels)):
            ranks = np.arange(start, end)
            outline = np.column_stack(
                (np.append(ranks, ranks[::-1]), np.append(values[start:end], np.full(end - start, 1e-4)))
            )
            area.set_verts([outline] if end > start else [])
        edge.set_xdata([num_kept, num_kept])
        note.set_text(f"{channels - num_kept} of {channels} go")
        here.set_data([100 * removed], [measured[score].iloc[shares.index(removed)]])

    def describe(score: str, removed: float) -> str:
        gone = ~kept(score, removed)
        agree = ""
        if bool(gone.any()):
            same = ", ".join(
                f"{int((gone & ~kept(name, removed)).sum())} of them {name} would remove as well"
                for name in names
                if name != score
            )
            agree = f" ({same})"
        value = measured[score].iloc[shares.index(removed)]
        return f"By {score}: {int(gone.sum())} of {channels} channels go{agree}. {quality}: {value:.4g}."

    choices = [(f"{100 * share:.0f} %", share) for share in shares]
    return Live(
        figure,
        update,
        describe,
        score=ipywidgets.ToggleButtons(options=names, description="Score", style={"button_width": "auto"}),
        removed=ipywidgets.SelectionSlider(options=choices, value=shares[len(shares) // 2], description="Removed"),
    )
