"""Measured steps under the roof of the machine that they were measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from labsupport.inference.machine_roof import machine_of
from labsupport.widgets.style import BLUE, GREEN, VERMILION, label, legend, new_figure, plain_ticks, show

KINDS = {"decode": (VERMILION, "s"), "prefill": (BLUE, "o")}


def steps_under_roof(measured: Mapping[str, pd.DataFrame]) -> None:
    """Show one panel a model: the roof, and a point for each row of `measure_roofline`'s table."""
    figure, axes = new_figure(1, len(measured), height=3.6, squeeze=False)
    told = []
    for axis, (name, table) in zip(axes[0], measured.items(), strict=True):
        machine = machine_of(table)
        label(axis, name, "operations a byte", "GFLOP/s")
        x = np.logspace(-1, 3, 200)
        roof = np.minimum(x * machine.bytes_per_second, machine.flops_per_second) / 1e9
        axis.plot(x, roof, "-", color=GREEN, label="roof")
        low = min(float(table["GFLOP/s"].min()), float(roof[0])) / 3
        axis.set(xscale="log", yscale="log", xlim=(0.2, 500), ylim=(low, 4 * float(roof.max())))
        for kind, (colour, marker) in KINDS.items():
            points = table[table.index.str.startswith(kind)].astype({"operations a byte": float, "GFLOP/s": float})
            axis.plot(points["operations a byte"], points["GFLOP/s"], marker, color=colour, label=kind)
            # below the points of decoding, above those of prefill: names of neighbours do not meet
            place: Any = {"xytext": (4, -12)} if kind == "decode" else {"xytext": (0, 6), "ha": "center"}
            for text, point in points.iterrows():
                here = point["operations a byte"], point["GFLOP/s"]
                axis.annotate(str(text).split(", ")[1], here, fontsize=8, textcoords="offset points", **place)
        plain_ticks(axis.xaxis, [1, 10, 100])
        plain_ticks(axis.yaxis, [t for t in (0.1, 1, 10, 100, 1000) if low < t < 4 * float(roof.max())])
        legend(axis, loc="upper left", ncols=3, columnspacing=1.0, handletextpad=0.4)
        told += [f"{name}, {kind}: {row['share of the roof']:.0%} of the roof" for kind, row in table.iterrows()]
    show(figure, ". ".join(told) + ".")
