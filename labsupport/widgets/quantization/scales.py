"""One scale per tensor, per row or per group: the range that each covers, what it costs and what it saves."""

from __future__ import annotations

from functools import cache

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import LogNorm
from torch import Tensor

from labsupport.quantization.affine import fake_quantize
from labsupport.quantization.rtn import rtn_quantize
from labsupport.widgets.live import Live
from labsupport.widgets.quantization.tensors import MAX_ROWS, input_rows, power_of
from labsupport.widgets.style import (
    BLUE,
    LIGHT_GREY,
    SEQUENTIAL,
    VERMILION,
    colorbar,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
    round_ticks,
)


def granularity(weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"]) -> Live:
    """One scale per tensor, row or group: the range that each covers, its cost in bits, and the output error.

    weight: a layer's weight. inputs: real activations of that layer, on which the output error is measured.
    """
    weight = weight.detach().float()[:MAX_ROWS]
    columns = weight.shape[1]
    x = input_rows(inputs, columns)
    power = power_of(x @ weight.t())
    sizes: dict[str, int | None] = {"tensor": 0, "row": None}
    sizes |= {f"group of {size}": size for size in (256, 128, 64, 32, 16) if size < columns}
    choices, all_bits = list(sizes), list(range(2, 9))

    @cache
    def measure(scale: str, bits: int) -> tuple[float, float]:
        """Bits per weight with all metadata, output error relative to the output."""
        if sizes[scale] == 0:
            restored, cost = fake_quantize(weight, bits=bits), bits + (16 + bits) / weight.numel()
        else:
            quantized = rtn_quantize(weight, bits, sizes[scale])
            restored, cost = quantized.dequantize(), quantized.bits_per_weight
        return cost, power_of(x @ (restored - weight).t()) / power

    @cache
    def ranges(scale: str) -> np.ndarray:
        """Range (largest minus smallest, 0 included) of the set that each weight belongs to."""
        size = sizes[scale]
        parts = [weight] if size == 0 else list(weight.split(size or columns, dim=1))
        dims = (0, 1) if size == 0 else (1,)
        spans = [(p.amax(dims, True).clamp(min=0) - p.amin(dims, True).clamp(max=0)).expand_as(p) for p in parts]
        return torch.cat(spans, dim=1).numpy()

    figure, (left, right) = new_figure(1, 2, height=3.7, width_ratios=[1.35, 1])
    label(left, "Range that shares one scale", "input channel", "output channel")
    label(right, "Cost and error", "bits per weight, scales included", "output error [% of output power]")
    largest = float(ranges("tensor").max())
    lowest = max(float(np.quantile(ranges(choices[-1]), 0.01)), largest / 1000)
    norm = LogNorm(lowest, largest)
    picture = left.imshow(
        ranges("tensor"), cmap=SEQUENTIAL, norm=norm, aspect="auto", interpolation="nearest", animated=True
    )
    colorbar(figure, picture, left, "largest − smallest weight", round_ticks(lowest, largest))
    points = np.array([measure(scale, bits) for bits in all_bits for scale in choices])
    right.plot(points[:, 0], 100 * points[:, 1], "o", ms=3.5, color=LIGHT_GREY, label="all choices")
    right.set(yscale="log", xlim=(1.8, points[:, 0].max() + 0.4))
    right.set_ylim(50 * points[:, 1].min(), max(150, 150 * points[:, 1].max()))
    plain_ticks(right.yaxis)
    curve = right.plot([], [], "o-", ms=4.5, color=BLUE, animated=True, label="at these bits")[0]
    here = right.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True, label="chosen")[0]
    legend(right, loc="upper right")

    def update(scale: str, bits: int) -> None:
        picture.set_data(ranges(scale))
        costs, errors = zip(*(measure(choice, bits) for choice in choices), strict=True)
        curve.set_data(costs, 100 * np.array(errors))
        cost, error = measure(scale, bits)
        here.set_data([cost], [100 * error])

    def describe(scale: str, bits: int) -> str:
        cost, error = measure(scale, bits)
        worse = measure("tensor", bits)[1] / error
        compared = "" if scale == "tensor" else f", {worse:.3g} times less than with one scale for the tensor"
        return (
            f"One scale a {scale}, {bits} bits: {cost:.3f} bits per weight with scales, "
            f"output error {percent(error)} of the output power{compared}."
        )

    return Live(
        figure,
        update,
        describe,
        scale=ipywidgets.SelectionSlider(options=choices, value="row", description="One scale a"),
        bits=ipywidgets.IntSlider(value=4, min=2, max=8, description="Bits"),
    )
