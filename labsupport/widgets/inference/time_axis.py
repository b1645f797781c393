"""A time axis for the pictures of schedulers: its scale changes without the axis being drawn again."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

AT_ONCE = 1e6  # requests per second: as good as all at the same time


class FixedTicks:
    """Five ticks from 0 to 1 with animated labels: the axis itself never has to be drawn again."""

    def __init__(self, axes: Axes) -> None:
        places = np.linspace(0, 1, 5)
        axes.set(xlim=(0, 1))
        axes.set_xticks(places, ["0"] * 5)  # invisible, they reserve the space below the axis
        for tick in axes.get_xticklabels():
            tick.set_alpha(0)
        across = axes.get_xaxis_transform()
        self._labels = [
            axes.text(place, -0.08, "", transform=across, ha="center", va="top", fontsize=9, animated=True)
            for place in places
        ]

    def reach(self, end: float) -> None:
        for number, text in enumerate(self._labels):
            text.set_text(f"{end * number / 4:g}")


def round_up(value: float) -> float:
    """Up to a round number whose quarters are round too."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9))
