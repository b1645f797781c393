"""From MHA to MQA: which query heads share a key-value head, and what that costs in quality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets

from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREY,
    LIGHT_GREY,
    ORANGE,
    VERMILION,
    label,
    legend,
    new_figure,
    plain_ticks,
    round_ticks,
)

if TYPE_CHECKING:
    import pandas as pd


def heads(num_heads: int, measured: pd.DataFrame) -> Live:
    """From MHA to MQA: which query heads share a key-value head, and the quality lost before and after uptraining.

    measured: indexed by the number of KV heads; columns "bytes a token", "pooled" and "uptrained" (perplexity).
    """
    options = [int(n) for n in measured.index]
    figure, (left, right) = new_figure(1, 2, height=3.3, width_ratios=[1, 1.1])
    label(left, "Who reads which keys and values")
    label(right, "Bytes and quality", "KV cache [bytes a token] (KV heads)", "perplexity")
    left.set(xlim=(-0.7, num_heads - 0.3), ylim=(-0.6, 1.6), xticks=[])
    left.set_yticks([0, 1], ["KV heads", "query heads"])
    left.spines[:].set_visible(False)
    left.plot(range(num_heads), [1] * num_heads, "o", ms=13, color=ORANGE)
    lines = [left.plot([i, i], [1, 0], "-", color=GREY, lw=1.2, zorder=0, animated=True)[0] for i in range(num_heads)]
    shared = left.plot([], [], "s", ms=15, color=BLUE, animated=True)[0]
    held = measured["bytes a token"]
    right.vlines(held, measured["pooled"], measured["uptrained"], color=LIGHT_GREY, lw=1.5, zorder=0)
    for name, colour, marker in (("pooled", VERMILION, "s"), ("uptrained", BLUE, "o")):  # no line: the four are apart
        right.plot(held, measured[name], marker, ms=6, color=colour, label=name)
    right.set_xticks(held, [f"{size:,.0f}\n({count})" for count, size in zip(options, held, strict=True)])
    legend(right, loc="upper right")
    margin = 0.15 * (held.max() - held.min())
    right.set(xlim=(held.min() - margin, held.max() + margin))
    both = measured[["pooled", "uptrained"]].to_numpy()
    right.set(yscale="log", ylim=(0.8 * both.min(), 1.5 * both.max()))
    plain_ticks(right.yaxis, round_ticks(0.8 * both.min(), 1.5 * both.max()))
    marks = right.plot([], [], "D", ms=10, mfc="none", mec=BLACK, mew=2.2, animated=True)[0]

    def update(kv_heads: int) -> None:
        group = num_heads // kv_heads
        centres = [group * i + (group - 1) / 2 for i in range(kv_heads)]
        for i, line in enumerate(lines):
            line.set_data([i, centres[i // group]], [1, 0])
        shared.set_data(centres, [0] * kv_heads)
        row = measured.loc[kv_heads]
        marks.set_data([row["bytes a token"]] * 2, [row["pooled"], row["uptrained"]])

    def describe(kv_heads: int) -> str:
        row = measured.loc[kv_heads]
        kind = {num_heads: "MHA", 1: "MQA"}.get(kv_heads, "GQA")
        return (
            f"{kind}: {num_heads} query heads share {kv_heads} KV heads, {row['bytes a token']:,.0f} bytes a token. "
            f"Perplexity {row['pooled']:.3g} just pooled, {row['uptrained']:.3g} after training on."
        )

    slider = ipywidgets.SelectionSlider(options=options, value=options[len(options) // 2], description="KV heads")
    return Live(figure, update, describe, kv_heads=slider)
