"""The capstone's table as a picture: what a row costs in perplexity, and what it gains in bytes and in speed."""

from __future__ import annotations

import pandas as pd

from labsupport.widgets.style import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE, PURPLE, VERMILION, label, new_figure, show

LOOKS = ((GREY, "o"), (BLUE, "s"), (VERMILION, "D"), (ORANGE, "^"), (GREEN, "v"), (PURPLE, "P"))
PANELS = {"memory, MB": ("Memory against quality", "weights and cache (MB)"),
          "tokens/s, eight": ("Speed against quality", "tokens a second, eight at a time")}  # fmt: skip


def tradeoff_picture(table: pd.DataFrame) -> None:
    """Show a point for each row, in both panels; the grey line is the untouched model's perplexity."""
    figure, axes = new_figure(1, 2, height=3.6, sharey=True)
    for axis, (column, (title, unit)) in zip(axes, PANELS.items(), strict=True):
        label(axis, title, unit, "perplexity" if axis is axes[0] else "")
        for (name, row), (colour, marker) in zip(table.iterrows(), LOOKS, strict=False):
            axis.plot(row[column], row["perplexity"], marker, ms=9, color=colour, mec="white", label=str(name))
        axis.axhline(table["perplexity"].iloc[0], color=LIGHT_GREY, zorder=0)
        axis.set_xlim(0, 1.1 * table[column].max())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    told = [
        f"{name}: {row['memory, MB']:.3g} MB, perplexity {row['perplexity']:.3g}, {row['tokens/s, eight']:.3g} tokens/s"
        for name, row in table.iterrows()
    ]
    show(figure, "; ".join(told))
