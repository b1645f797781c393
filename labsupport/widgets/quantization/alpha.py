"""AWQ's exponent: output error and weight error pull in opposite directions."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.quantization.awq import channel_scale
from labsupport.quantization.rtn import rtn_quantize
from labsupport.widgets.live import Live
from labsupport.widgets.quantization.tensors import MAX_ROWS, halves, input_rows, output_error
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
    round_ticks,
)


def awq_alpha(weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"]) -> Live:
    """AWQ's exponent: output error and weight error pull in opposite directions, and only the output error matters.

    weight, inputs: a layer's weight and real activations. The scales come from the first half of the activations, the
    output error from the second half.
    """
    weight = weight.detach().float()[:MAX_ROWS]
    columns = weight.shape[1]
    seen, held_out = halves(input_rows(inputs, columns))
    mean_abs = seen.abs().mean(0)
    grams = seen.t() @ seen / len(seen), held_out.t() @ held_out / len(held_out)
    alphas = [i / 20 for i in range(21)]
    scales = [channel_scale(mean_abs, alpha) for alpha in alphas]
    groups = {f"{size}": size for size in (32, 64, 128) if size < columns} | {"whole row": None}

    @cache
    def measure(bits: int, group_size: str) -> SimpleNamespace:
        moved = torch.stack([
            rtn_quantize(weight * scale, bits, groups[group_size]).dequantize() / scale - weight for scale in scales
        ])  # fmt: skip
        calibration, output = (output_error(moved, gram) for gram in grams)
        weights = moved.square().sum((1, 2)).numpy()
        power = float(((weight @ grams[1]) * weight).sum())
        return SimpleNamespace(
            best=int(calibration[:20].argmin()),  # AWQ's search looks at 0, 1/20, ... 19/20
            output=output / output[0],
            weight=weights / weights[0],
            plain=output[0] / power,
        )

    figure, (left, right) = new_figure(1, 2, height=3.7, width_ratios=[1.25, 1])
    label(left, "Two errors, relative to no scaling", "α", "error / error at α = 0")
    label(right, "Scale of each input channel", "input channels, by mean |x|", "size")
    # The axis covers all settings, so that it does not have to move.
    widest = [measure(bits, "whole row") for bits in (2, 3, 4)] + [measure(4, next(iter(groups)))]
    errors = np.concatenate([error for m in widest for error in (m.output, m.weight)])
    floor, ceiling = errors.min() / 1.1, errors.max() * 1.5
    left.set(xlim=(-0.03, 1.03), yscale="log", ylim=(floor, ceiling))
    close = [tick for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 2, 3, 4) if floor <= tick <= ceiling]
    plain_ticks(left.yaxis, round_ticks(floor, ceiling) if ceiling / floor > 8 else close)
    left.axhline(1, color=GREY, lw=1, ls=":")
    weights = left.plot(alphas, np.ones(21), "s--", ms=4, color=VERMILION, label="weight error", animated=True)[0]
    output = left.plot(alphas, np.ones(21), "o-", ms=4, color=BLUE, label="output error, held-out", animated=True)[0]
    best = left.plot([], [], "*", ms=14, color=ORANGE, mec=BLACK, label="AWQ's choice", animated=True)[0]
    now = left.axvline(0, ymax=0.74, color=BLACK, lw=1.2, animated=True)  # up to the legend
    legend(left, loc="upper left")
    order = mean_abs.argsort(descending=True)
    ranks = np.arange(1, columns + 1)
    right.plot(ranks, mean_abs[order], color=GREY, ls="--", label="mean |x|")
    channel = right.plot(ranks, np.ones(columns), color=GREEN, label="scale s", animated=True)[0]
    right.set(yscale="log", xlim=(0, columns + 1))
    sizes = torch.cat([mean_abs.clamp(min=1e-4), scales[-1]])
    right.set_ylim(float(sizes.min()) / 1.5, float(sizes.max()) * 2)
    plain_ticks(right.yaxis)
    legend(right, loc="upper right")

    def update(alpha: float, bits: int, group_size: str) -> None:
        m = measure(bits, group_size)
        output.set_ydata(np.clip(m.output, floor, ceiling))
        weights.set_ydata(np.clip(m.weight, floor, ceiling))
        best.set_data([alphas[m.best]], [m.output[m.best]])
        now.set_xdata([alpha, alpha])
        channel.set_ydata(scales[_nearest(alphas, alpha)][order])

    def describe(alpha: float, bits: int, group_size: str) -> str:
        m, i = measure(bits, group_size), _nearest(alphas, alpha)
        lowest = alphas[int(m.weight.argmin())]
        return (
            f"{bits} bits, group size {group_size}, α = {alpha:.2f}: output error {m.output[i]:.2f} and weight error "
            f"{m.weight[i]:.2f} times those without scaling (output error there: {percent(m.plain)} of the output "
            f"power). AWQ's search takes α = {alphas[m.best]:.2f}, output error {m.output[m.best]:.2f}; the weight "
            f"error is lowest at α = {lowest:.2f}."
        )

    return Live(
        figure,
        update,
        describe,
        alpha=ipywidgets.FloatSlider(value=0.25, min=0, max=1, step=0.05, description="α"),
        bits=ipywidgets.IntSlider(value=4, min=2, max=4, description="Bits"),
        group_size=ipywidgets.SelectionSlider(
            options=list(groups), value="64" if "64" in groups else "whole row", description="Group size"
        ),
    )


def _nearest(options: list[float], value: float) -> int:
    return min(range(len(options)), key=lambda i: abs(options[i] - value))
