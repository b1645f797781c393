"""Every model of a compression pipeline by cost and quality, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
from matplotlib.text import Text

from labsupport.widgets.live import Live
from labsupport.widgets.pruning.numbering import number_offsets
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    label,
    new_figure,
    percent,
    plain_ticks,
    round_ticks,
)

if TYPE_CHECKING:
    import pandas as pd


FAR = 50  # pixels: a number beyond has a thread to its point


def trade_off(table: pd.DataFrame, quality: str, costs: Mapping[str, str], lower_is_better: bool = True) -> Live:
    """Every model of a pipeline by cost and quality; on the front are the models that no other beats in both.

    table: indexed by model. quality: a column. costs: label -> column (bytes, milliseconds), one shown at a time.
    """
    names, values = list(table.index), table[quality].to_numpy(dtype=float)
    worse = values if lower_is_better else -values
    all_costs = {text: table[column].to_numpy(dtype=float) for text, column in costs.items()}

    @cache
    def front(cost: str) -> list[int]:
        spent = all_costs[cost]
        order = sorted(range(len(names)), key=lambda i: (spent[i], worse[i]))
        best, found = np.inf, []
        for i in order:
            if worse[i] < best:
                best = worse[i]
                found.append(i)
        return found

    @cache
    def choice(cost: str, budget: int) -> int | None:
        within = np.flatnonzero(all_costs[cost] <= all_costs[cost].max() * budget / 100)
        return int(within[np.argmin(worse[within])]) if len(within) else None

    figure, (axis, key) = new_figure(1, 2, height=3.8, width_ratios=[1.35, 1])
    key.axis("off")
    label(axis, "Every stage and every baseline", "% of the dearest", quality)
    cheapest = min(100 * float((spent / spent.max()).min()) for spent in all_costs.values())
    axis.set(xlim=(0.8 * cheapest, 130), xscale="log")
    plain_ticks(axis.xaxis, round_ticks(0.9 * cheapest, 110))
    spread = values.max() - values.min()
    axis.set_ylim(values.min() - 0.12 * spread, values.max() + 0.15 * spread)
    line = axis.plot([], [], "-", color=GREEN, lw=2, animated=True)[0]
    dots = axis.plot([], [], "o", ms=6, color=BLUE, animated=True)[0]
    thread = {"arrowstyle": "-", "color": GREY, "lw": 0.7, "shrinkA": 0, "shrinkB": 3}
    placed = {"textcoords": "offset pixels", "ha": "center", "va": "center", "fontsize": 9, "arrowprops": thread}
    numbers = [axis.annotate(str(i + 1), (0, 0), (0, 0), animated=True, **placed) for i in range(len(names))]
    for number in numbers:
        number.set_in_layout(False)
    limit = axis.axvline(50, color=VERMILION, ls="--", animated=True)
    chosen = axis.plot([], [], "D", ms=11, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]
    rows = [
        key.text(0, 0.98 - i / len(names), f"{i + 1}  {name}", transform=key.transAxes, va="top", animated=True)
        for i, name in enumerate(names)
    ]
    for row in rows:
        row.set_fontsize(9)
    label(key, "Green: on the front")
    figure.draw_without_rendering()  # from here on pixels can be computed
    boxes = [Text.get_window_extent(number) for number in numbers]  # without the thread to the point

    @cache
    def offsets(cost: str) -> np.ndarray:
        share = 100 * all_costs[cost] / all_costs[cost].max()
        points = axis.transData.transform(np.column_stack((share, values)))
        return number_offsets(points, [box.width for box in boxes], max(box.height for box in boxes), point=10)

    def update(cost: str, budget: int) -> None:
        share = 100 * all_costs[cost] / all_costs[cost].max()
        on_front = front(cost)
        line.set_data(share[on_front], values[on_front])
        dots.set_data(share, values)
        picked = choice(cost, budget)
        for i, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            number.xy = (share[i], values[i])
            number.set_position(offsets(cost)[i])
            number.arrow_patch.set_visible(np.hypot(*offsets(cost)[i]) > FAR)
            row.set_color(VERMILION if i == picked else GREEN if i in on_front else BLACK)
            row.set_fontweight("bold" if i == picked else "normal")
        limit.set_xdata([budget, budget])
        chosen.set_data(([share[picked]], [values[picked]]) if picked is not None else ([], []))

    def describe(cost: str, budget: int) -> str:
        picked = choice(cost, budget)
        if picked is None:
            return f"At most {budget} % of the dearest in {cost}: no model is that cheap."
        share = all_costs[cost][picked] / all_costs[cost].max()
        return (
            f"At most {budget} % of the dearest in {cost}: best is “{names[picked]}”, {percent(share)}, "
            f"{quality} {values[picked]:.4g}. On the front: {', '.join(names[i] for i in front(cost))}."
        )

    return Live(
        figure,
        update,
        describe,
        cost=ipywidgets.ToggleButtons(options=list(all_costs), description="Cost", style={"button_width": "auto"}),
        budget=ipywidgets.IntSlider(value=50, min=5, max=100, step=5, description="Budget [%]"),
    )
