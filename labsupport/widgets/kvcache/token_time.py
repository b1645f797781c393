"""The time of one more token with and without a cache."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import ipywidgets
from matplotlib.ticker import NullLocator

from labsupport.kvcache.cost import next_token_cost
from labsupport.lm.config import LlamaConfig
from labsupport.widgets.live import Live
from labsupport.widgets.style import BLACK, BLUE, VERMILION, label, legend, new_figure, plain_ticks

if TYPE_CHECKING:
    import pandas as pd


def decoding(config: LlamaConfig, measured: pd.DataFrame) -> Live:
    """One more token with and without a cache: operations by the formula, and milliseconds measured.

    measured: indexed by tokens held; milliseconds in columns "with cache", "without" and, as estimated by the roofline,
    "with cache, roofline", "without, roofline".
    """
    lengths = [int(n) for n in measured.index]

    @cache
    def flops(length: int, cached: bool) -> int:
        return next_token_cost(config, length, cached=cached).flops

    figure, (left, right) = new_figure(1, 2, height=3.3)
    label(left, "Operations for one more token", "tokens held", "FLOP")
    label(right, "Milliseconds for one more token", "tokens held", "ms")
    kinds = (("without", False, VERMILION, "s-"), ("with cache", True, BLUE, "o-"))
    for name, cached, colour, style in kinds:
        left.plot(lengths, [flops(n, cached) for n in lengths], style, ms=4, color=colour, label=name)
        right.plot(lengths, measured[name], style, ms=4, color=colour, label=f"{name}, measured")
        right.plot(lengths, measured[f"{name}, roofline"], ":", color=colour, label=f"{name}, roofline")
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(lengths, [str(n) for n in lengths], minor=False)
        axis.xaxis.set_minor_locator(NullLocator())
        legend(axis, loc="upper left")
    left.set_ylim(top=30 * flops(lengths[-1], False))
    plain_ticks(right.yaxis)
    right.set_ylim(top=40 * float(measured["without"].max()))
    marks = [axis.plot([], [], "D", ms=9, mfc="none", mec=BLACK, mew=2.2, animated=True)[0] for axis in (left, right)]

    def update(length: int) -> None:
        marks[0].set_data([length] * 2, [flops(length, False), flops(length, True)])
        marks[1].set_data([length] * 2, [measured["without"][length], measured["with cache"][length]])

    def describe(length: int) -> str:
        fewer = flops(length, False) / flops(length, True)
        without, cached = measured["without"][length], measured["with cache"][length]
        return (
            f"{length} tokens held: {fewer:.0f} times fewer operations with the cache, {without / cached:.1f} times "
            f"faster ({without:.3g} ms and {cached:.3g} ms)."
        )

    slider = ipywidgets.SelectionSlider(options=lengths, value=lengths[-1], description="Tokens held")
    return Live(figure, update, describe, length=slider)
