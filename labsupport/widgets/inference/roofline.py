"""Where decoding and prefill lie under the roofline, counted by `labsupport.kvcache.cost`."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets
import numpy as np

from labsupport.kvcache.cost import Cost, Estimate, Machine, forward_cost, next_token_cost, roofline
from labsupport.kvcache.sizes import Preset
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SKY_BLUE,
    VERMILION,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
)

WEIGHT_FORMATS = {"16 bits": (2.0, BLUE, "o-"), "8 bits": (1.0, ORANGE, "s--"), "4 bits": (0.5, GREEN, "D:")}


def roofline_limits(presets: Mapping[str, Preset], machines: Mapping[str, Machine]) -> Live:
    """Where decoding and prefill lie under the roofline, and the tokens per second that it allows as the batch grows.

    Assumes arithmetic that is equally fast for all weight formats, and a cache of 16 bits.
    """
    batches = [2**i for i in range(10)]
    lengths = [128 * 4**i for i in range(5)]

    def decode(model: str, machine: str, batch: int, length: int, weights: str) -> tuple[Cost, Estimate]:
        size = WEIGHT_FORMATS[weights][0]
        cost = next_token_cost(presets[model].config, length, batch, bytes_per_weight=size)
        return cost, roofline(cost, machines[machine])

    figure, (left, right) = new_figure(1, 2, height=3.5)
    label(left, "Under the roof", "operations a byte", "share of all operations a second")
    label(right, "Decoding, at best", "sequences in the batch", "tokens a second")
    left.set(xscale="log", yscale="log", xlim=(0.3, 3e4), ylim=(3e-4, 3))
    plain_ticks(left.xaxis, [1, 10, 100, 1000, 10_000])
    left.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    x = np.logspace(-0.6, 4.6, 400)
    roof = left.plot(x, x, "-", color=BLACK, lw=1.4, label="roof", animated=True)[0]
    path = left.plot([], [], ".-", color=SKY_BLUE, label="decode, batch 1 to 512", animated=True)[0]
    point = left.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, label="this batch", animated=True)[0]
    prompt = left.plot([], [], "^", ms=8, color=GREEN, label="reading one prompt", animated=True)[0]
    legend(left, loc="lower right")
    right.set(xscale="log", yscale="log", ylim=(0.3, 3e5))
    right.set_xticks(batches[::3], [str(n) for n in batches[::3]], minor=False)
    plain_ticks(right.xaxis, batches[::3])
    right.set_yticks([1, 10, 100, 1e3, 1e4, 1e5], ["1", "10", "100", "1,000", "10,000", "100,000"])
    curves = {
        name: right.plot(batches, batches, style, ms=4, color=colour, label=f"weights in {name}", animated=True)[0]
        for name, (_, colour, style) in WEIGHT_FORMATS.items()
    }
    legend(right, loc="lower right")
    here = right.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]

    def share(cost: Cost, machine: str) -> float:
        return min(1.0, cost.intensity / machines[machine].ridge)

    def update(model: str, machine: str, batch: int, length: int, weights: str) -> None:
        roof.set_ydata(np.minimum(1, x / machines[machine].ridge))
        costs = [decode(model, machine, each, length, weights)[0] for each in batches]
        path.set_data([cost.intensity for cost in costs], [share(cost, machine) for cost in costs])
        cost, best = decode(model, machine, batch, length, weights)
        point.set_data([cost.intensity], [share(cost, machine)])
        reading = forward_cost(presets[model].config, length, bytes_per_weight=WEIGHT_FORMATS[weights][0])
        prompt.set_data([reading.intensity], [share(reading, machine)])
        for name, curve in curves.items():
            curve.set_ydata([each / decode(model, machine, each, length, name)[1].seconds for each in batches])
        here.set_data([batch], [batch / best.seconds])

    def describe(model: str, machine: str, batch: int, length: int, weights: str) -> str:
        cost, best = decode(model, machine, batch, length, weights)
        return (
            f"{model}, weights in {weights}, {batch} sequences of {length:,} tokens, {machine}: "
            f"{cost.intensity:.3g} operations a byte, the ridge is at {machines[machine].ridge:.3g}. Bound by "
            f"{best.bound}, at best {batch / best.seconds:,.3g} tokens/s and {1e3 * best.seconds:.3g} ms a step; "
            f"{percent(cost.kv_bytes / cost.bytes)} of the bytes are cache."
        )

    return Live(
        figure,
        update,
        describe,
        machine=ipywidgets.ToggleButtons(options=list(machines), description="Machine", style={"button_width": "auto"}),
        model=ipywidgets.SelectionSlider(options=list(presets), description="Model"),
        batch=ipywidgets.SelectionSlider(options=batches, value=16, description="Sequences"),
        length=ipywidgets.SelectionSlider(options=lengths, value=2048, description="Tokens each"),
        weights=ipywidgets.SelectionSlider(options=list(WEIGHT_FORMATS), description="Weights"),
    )
