"""The moving pictures of chapter 1. Each function takes real weights or activations and returns a `Live`.

All are built alike: a cached `measure` computes what the algorithms of `labsupport.quantization` do at the settings
of the controls, `update` puts its numbers into the artists, `describe` puts them into words. Axes are fixed, so that a
change of the controls is seen as a change of the curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import LogNorm
from torch import Tensor

from labsupport.quantization.affine import dequantize, fake_quantize, qparams_from_range, quantize
from labsupport.quantization.awq import channel_scale
from labsupport.quantization.fp8 import fp8_fake_quantize, fp8_format
from labsupport.quantization.gptq import gptq_steps
from labsupport.quantization.observers import MSEObserver, PercentileObserver
from labsupport.quantization.rtn import rtn_quantize
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    DIVERGING,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    SEQUENTIAL,
    SKY_BLUE,
    VERMILION,
    colorbar,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
)

Values = Float[Tensor, "*shape"] | Mapping[str, Float[Tensor, "*shape"]]
MAX_VALUES = 20_000  # more cannot be told apart in a picture
MAX_ROWS = 256
_ROUND = [digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5)]


def quantization_grid(values: Values) -> Live:
    """Values, the grid they are moved to, and the error: how bits, range, an outlier and symmetry change all three.

    values: one tensor of any shape, or several by name (say weights, and activations after SiLU) to switch between.
    """
    named = {name: _sample(x) for name, x in _by_name(values).items()}
    shown_error = 2.0  # in half steps, either side
    error_edges = np.linspace(-shown_error, shown_error, 41)
    value_edges = np.linspace(-1.0, 1.0, 81)
    shown = {name: _spread(x.numpy(), 4000) for name, x in named.items()}

    @lru_cache(maxsize=64)
    def measure(values: str, bits: int, outlier: int, kept_range: int, symmetric: bool) -> SimpleNamespace:
        largest = float(named[values].abs().max())
        x = named[values] / largest
        n = len(x)
        if outlier:
            x = torch.cat([x, torch.tensor([float(outlier)])])
        low, high = x.min() * kept_range / 100, x.max() * kept_range / 100
        qparams = qparams_from_range(low, high, bits, symmetric)
        error = dequantize(quantize(x, qparams), qparams) - x
        codes = torch.arange(qparams.qmin, qparams.qmax + 1)
        levels = ((codes - qparams.zero_point) * qparams.scale).numpy()
        half = float(qparams.scale) / 2
        inside = (x >= levels[0] - half) & (x <= levels[-1] + half)
        return SimpleNamespace(
            x=x.numpy(),
            error=error.numpy(),
            levels=levels,
            half=half,
            step=2 * half * largest,
            clipped=1 - float(inside.float().mean()),
            worst=float(error[inside].abs().max()) / half,
            # The outlier is there to do damage to the others: their error is what counts.
            rms=math.sqrt(_power(error[:n])) * largest,
            signal_to_noise=10 * math.log10(_power(x[:n]) / max(_power(error[:n]), 1e-30)),
        )

    figure, axes = new_figure("AC;BC", height=4.4, width_ratios=[2.1, 1], height_ratios=[1, 1.15])
    top, bottom, right = axes["A"], axes["B"], axes["C"]
    label(top, "Values and grid", "", "number of values")
    label(bottom, "Error of each value", "value / largest |value|", "|error| / largest |value|")
    label(right, "Errors, in half steps", "error [half steps]", "share of values")
    top.set(xlim=(-1.08, 1.08), yscale="log", ylim=(0.7, 2 * max(len(x) for x in named.values())))
    top.tick_params(labelbottom=False)
    bottom.set(xlim=(-1.08, 1.08), yscale="log", ylim=(1e-5, 3))
    right.set(xlim=(-shown_error, shown_error), ylim=(0, 0.25))
    right.set_yticks([0, 0.05, 0.1, 0.15, 0.2, 0.25], ["0", "5 %", "10 %", "15 %", "20 %", "25 %"])
    bars = top.stairs(np.zeros(80), value_edges, baseline=0.5, fill=True, color=SKY_BLUE, animated=True)
    grid = top.vlines([0.0], 0, 1, transform=top.get_xaxis_transform(), color=BLACK, lw=0.8, animated=True)
    note = top.text(0.985, 0.94, "", transform=top.transAxes, ha="right", va="top", color=VERMILION, animated=True)
    dots = bottom.plot([], [], ".", ms=3, color=BLUE, alpha=0.5, mew=0, animated=True)[0]
    bound = bottom.axhline(1, color=VERMILION, ls="--", lw=1.6, animated=True)
    bound_text = bottom.text(-1.05, 1, "half a step", color=VERMILION, va="bottom", animated=True)
    errors = right.stairs(np.zeros(40), error_edges, fill=True, color=BLUE, animated=True)
    for side in (-1, 1):
        right.axvline(side, color=VERMILION, ls="--", lw=1.6)
    beyond = right.text(0.5, 0.97, "", transform=right.transAxes, ha="center", va="top", color=VERMILION, animated=True)
    beyond.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 2.0})

    def update(**controls: Any) -> None:
        m = measure(**controls)
        bars.set_data(np.histogram(m.x, value_edges)[0] + 0.5)
        grid.set_segments([[(level, 0), (level, 1)] for level in m.levels if abs(level) <= 1.08])
        grid.set(linewidth=0.8, color=BLACK) if len(m.levels) <= 32 else grid.set(linewidth=0.35, color=GREY)
        outlier = controls["outlier"]
        note.set_text(f"outlier at {outlier} →" if outlier else "")
        picked = shown[controls["values"]]
        dots.set_data(m.x[picked], np.maximum(np.abs(m.error[picked]), 1.2e-5))
        bound.set_ydata([m.half, m.half])
        bound_text.set_y(m.half * 1.15)
        in_half_steps = m.error / m.half
        shares = np.histogram(in_half_steps, error_edges)[0] / len(m.error)
        errors.set_data(shares)
        outside = float((np.abs(in_half_steps) > shown_error).mean())
        notes = [f"tallest bar: {percent(shares.max())}"] if shares.max() > 0.25 else []
        notes += [f"{percent(outside)} lie beyond"] if outside else []
        beyond.set_text("\n".join(notes))

    def describe(values: str, bits: int, outlier: int, kept_range: int, symmetric: bool) -> str:
        m = measure(values, bits, outlier, kept_range, symmetric)
        kind = "symmetric" if symmetric else "asymmetric"
        extra = f", with an outlier {outlier} times the largest value" if outlier else ""
        return (
            f"{_start(values)}{bits} bits, {kind}, {kept_range} % of the range{extra}: {len(m.levels)} levels, "
            f"step {m.step:.3g}; RMS error {m.rms:.3g}, signal to noise {m.signal_to_noise:.1f} dB; "
            f"worst error inside the range {m.worst:.2f} half steps; {percent(m.clipped)} of the values are clipped."
        )

    return Live(
        figure,
        update,
        describe,
        values=_choose(named),
        bits=ipywidgets.IntSlider(value=4, min=2, max=8, description="Bits"),
        outlier=ipywidgets.SelectionSlider(
            options=[("none", 0), *((f"{k} × largest", k) for k in (2, 4, 8, 16))], description="Outlier"
        ),
        kept_range=ipywidgets.IntSlider(value=100, min=10, max=100, step=5, description="Range kept [%]"),
        symmetric=False,
    )


def granularity(weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"]) -> Live:
    """One scale a tensor, a row or a group: what range each covers, and what its precision costs and brings.

    weight: a layer's weight. inputs: real activations of that layer, on which the output error is measured.
    """
    weight = weight.detach().float()[:MAX_ROWS]
    columns = weight.shape[1]
    x = _rows(inputs, columns)
    power = _power(x @ weight.t())
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
        return cost, _power(x @ (restored - weight).t()) / power

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
    finest = np.quantile(ranges(choices[-1]), 0.01)
    largest = float(ranges("tensor").max())
    norm = LogNorm(max(finest, largest / 1000), largest)
    picture = left.imshow(
        ranges("tensor"), cmap=SEQUENTIAL, norm=norm, aspect="auto", interpolation="nearest", animated=True
    )
    ticks = [tick for tick in _ROUND if max(finest, largest / 1000) <= tick <= largest]
    colorbar(figure, picture, left, "largest − smallest weight", ticks)
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


def gptq_propagation(
    weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"], rows: int = 24, columns: int = 128
) -> Live:
    """GPTQ column by column: what is rounded, what later columns take over, the output error so far beside RTN's.

    weight, inputs: a layer's weight and real activations; the first `rows` output and `columns` input channels are
    used, so that single weights can be seen. The first half of the activations gives the Hessian; the second half,
    which GPTQ never sees, measures the error. With uncorrelated inputs (Hessian = identity) GPTQ becomes
    round-to-nearest: correlation is what it lives on.
    """
    x = _rows(inputs, weight.shape[1])[:, :columns]
    weight = weight.detach().float()[:rows, :columns].contiguous()
    rows, columns = weight.shape
    seen, held_out = _halves(x)
    hessians = {
        "real activations": (seen.t() @ seen, held_out.t() @ held_out),
        "uncorrelated": (torch.eye(columns), torch.eye(columns)),
    }

    @cache
    def measure(bits: int, inputs: str) -> SimpleNamespace:
        hessian, judge = hessians[inputs]
        after = [weight, *(step.weight for step in gptq_steps(weight, hessian, bits, group_size=None))]
        nearest = rtn_quantize(weight, bits, group_size=None)
        rounded = nearest.dequantize() - weight
        first = torch.arange(columns + 1)[:, None, None] > torch.arange(columns)
        moved = torch.stack(after) - weight  # [columns done, out, in]
        power = float(((weight @ judge) * weight).sum())
        return SimpleNamespace(
            in_steps=(moved / nearest.scale.float()).numpy(),
            gptq=_output_error(moved, judge) / power,
            rtn=_output_error(rounded * first, judge) / power,
        )

    figure, (top, bottom) = new_figure(2, 1, height=4.6, height_ratios=[1.15, 1], sharex=True)
    label(top, "Change of each weight so far", "", "output channel")
    label(bottom, "Output error so far, on held-out inputs", "columns done", "error [% of power]")
    picture = top.imshow(
        np.zeros((rows, columns)), cmap=DIVERGING, vmin=-1.2, vmax=1.2, aspect="auto", interpolation="nearest",
        extent=(0, columns, rows, 0), animated=True,
    )  # fmt: skip
    colorbar(figure, picture, [top, bottom], "change [steps of the grid]")
    bottom.set_xlim(0, columns)
    edge = top.axvline(0, color=BLACK, lw=1.6, animated=True)
    sides = {"ha": "center", "va": "center", "transform": top.get_xaxis_transform(), "animated": True,
             "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 2.0}}  # fmt: skip
    done = top.text(0, 0.5, "rounded", **sides)
    to_come = top.text(0, 0.5, "take over the error", **sides)
    everything = np.arange(columns + 1)
    lines, dots = {}, {}
    for name, colour, style, width in (("GPTQ", BLUE, "-", 3.0), ("RTN", VERMILION, "--", 1.8)):
        lines[name] = bottom.plot(everything, np.zeros(columns + 1), style, color=colour, lw=width, label=name)[0]
        dots[name] = bottom.plot([], [], "o", ms=7, color=colour, clip_on=False, animated=True)[0]
    now = bottom.axvline(0, color=BLACK, lw=1.0, animated=True)
    legend(bottom, loc="upper left")
    drawn: list[tuple[int, str]] = []

    def update(columns_done: int, bits: int, inputs: str) -> None:
        m = measure(bits, inputs)
        errors = {"RTN": m.rtn, "GPTQ": m.gptq}
        if drawn != [(bits, inputs)]:  # only a new experiment moves the axes
            drawn[:] = [(bits, inputs)]
            for name, error in errors.items():
                lines[name].set_ydata(100 * error)
            bottom.set_ylim(0, 115 * max(error.max() for error in errors.values()))
        picture.set_data(m.in_steps[columns_done])
        edge.set_xdata([columns_done, columns_done])
        now.set_xdata([columns_done, columns_done])
        done.set_x(columns_done / 2)
        done.set_visible(columns_done > columns / 8)
        to_come.set_x((columns_done + columns) / 2)
        to_come.set_text("take over the error" if inputs == "real activations" else "stay as they are")
        to_come.set_visible(0 < columns_done < columns * 3 / 4)
        for name, error in errors.items():
            dots[name].set_data([columns_done], [100 * error[columns_done]])

    def describe(columns_done: int, bits: int, inputs: str) -> str:
        m = measure(bits, inputs)
        moved = ""
        if 0 < columns_done < columns:
            fed = math.sqrt(np.square(m.in_steps[columns_done][:, columns_done:]).mean())
            moved = f"; those still to come have moved by {fed:.2f} steps (RMS)"
        return (
            f"{bits} bits, {inputs}: {columns_done} of {columns} columns rounded{moved}. Output error so far: GPTQ "
            f"{percent(m.gptq[columns_done])}, RTN {percent(m.rtn[columns_done])}; at the end "
            f"{percent(m.gptq[-1])} and {percent(m.rtn[-1])} of the output power."
        )

    return Live(
        figure,
        update,
        describe,
        columns_done=ipywidgets.IntSlider(value=columns // 2, min=0, max=columns, description="Columns done"),
        bits=ipywidgets.IntSlider(value=3, min=2, max=4, description="Bits"),
        inputs=ipywidgets.ToggleButtons(options=list(hessians), description="Inputs", style={"button_width": "auto"}),
    )


def awq_alpha(weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"]) -> Live:
    """AWQ's exponent: output error and weight error pull in opposite directions, and only one of them matters.

    weight, inputs: a layer's weight and real activations. The scales come from the first half of the activations, the
    output error from the second half.
    """
    weight = weight.detach().float()[:MAX_ROWS]
    columns = weight.shape[1]
    seen, held_out = _halves(_rows(inputs, columns))
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
        calibration, output = (_output_error(moved, gram) for gram in grams)
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
    # The axis holds the widest settings, so that it need not move.
    widest = [measure(bits, "whole row") for bits in (2, 3, 4)] + [measure(4, next(iter(groups)))]
    errors = np.concatenate([error for m in widest for error in (m.output, m.weight)])
    floor, ceiling = errors.min() / 1.1, errors.max() * 1.5
    left.set(xlim=(-0.03, 1.03), yscale="log", ylim=(floor, ceiling))
    ticks = _ROUND if ceiling / floor > 8 else (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 2, 3, 4)
    plain_ticks(left.yaxis, [tick for tick in ticks if floor <= tick <= ceiling])
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


def fp8_grid(values: Values) -> Live:
    """E4M3 and E5M2 beside INT8: a step that grows with the value against one step for all.

    values: one tensor, or several by name. They are multiplied by a power of 2 and cast; INT8's scale follows the
    largest value, as usual.
    """
    named = {name: _sample(x) for name, x in _by_name(values).items()}
    formats = {"E4M3": ("e4m3", BLUE, "-"), "E5M2": ("e5m2", GREEN, "--")}
    low, high = -24, 18
    edges = 2.0 ** np.arange(low, high + 0.5, 0.5)
    fine = 2.0 ** np.linspace(low, high, 1500)

    @lru_cache(maxsize=128)
    def measure(values: str, exponent: int) -> SimpleNamespace:
        x = named[values] * 2.0**exponent
        casts = {name: fp8_fake_quantize(x, code, scale=1.0) for name, (code, _, _) in formats.items()}
        casts["INT8"] = fake_quantize(x, symmetric=True)
        nonzero = x != 0
        e4m3 = fp8_format("e4m3")
        return SimpleNamespace(
            x=x.abs().numpy(),
            largest=float(x.abs().max()),
            error={name: math.sqrt(_power(cast - x) / _power(x)) for name, cast in casts.items()},
            lost={name: float((cast[nonzero] == 0).float().mean()) for name, cast in casts.items()},
            saturated=float((x.abs() > e4m3.max).float().mean()),
        )

    figure, axes = new_figure("AC;BC", height=4.4, width_ratios=[2.1, 1], height_ratios=[1.3, 1])
    top, bottom, right = axes["A"], axes["B"], axes["C"]
    label(top, "Relative error", "", "half step / |x|")
    label(bottom, "The values", "|x| after scaling", "share of values")
    label(right, "Error of all values", "", "RMS error / RMS value")
    for axis in (top, bottom):
        axis.set_xscale("log", base=2)
        axis.set(xlim=(2.0**low, 2.0**high))
        axis.set_xticks([2.0**k for k in range(low, high + 1, 6)])
    top.tick_params(labelbottom=False)
    top.set(yscale="log", ylim=(1e-3, 2))
    top.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    bottom.set(ylim=(0, 0.3))
    bottom.set_yticks([0, 0.1, 0.2, 0.3], ["0", "10 %", "20 %", "30 %"])
    for name, (code, colour, style) in formats.items():
        top.plot(fine, _fp8_bound(fine, code), style, color=colour, label=name)
    integers = top.plot([], [], ":", color=VERMILION, lw=2.4, label="INT8", animated=True)[0]
    legend(top, loc="lower right", ncols=3, bbox_to_anchor=(1.0, 0.99), borderaxespad=0)
    bars = bottom.stairs(np.zeros(len(edges) - 1), edges, fill=True, color=SKY_BLUE, animated=True)
    names = [*formats, "INT8"]
    colours = [colour for _, colour, _ in formats.values()] + [VERMILION]
    columns = right.bar(names, np.ones(3), color=colours, width=0.62, animated=True)
    right.set(yscale="log", ylim=(1e-3, 2.5))
    right.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    texts = [right.text(i, 1, "", ha="center", va="bottom", animated=True) for i in range(3)]

    def update(values: str, exponent: int) -> None:
        m = measure(values, exponent)
        bars.set_data(np.histogram(m.x, edges)[0] / len(m.x))
        step = m.largest / 127
        inside = fine[fine <= m.largest]
        integers.set_data(inside, np.minimum(step / 2 / inside, 1))
        for column, text, name in zip(columns, texts, names, strict=True):
            column.set_height(m.error[name])
            text.set_y(m.error[name] * 1.08)
            text.set_text(percent(m.error[name]))

    def describe(values: str, exponent: int) -> str:
        m = measure(values, exponent)
        errors = ", ".join(f"{name} {percent(error)}" for name, error in m.error.items())
        zeros = ", ".join(f"{name} {percent(lost)}" for name, lost in m.lost.items())
        return (
            f"{_start(values)}scaled by 2^{exponent}: largest |x| {m.largest:.3g}. RMS error: {errors}. Lost to zero: "
            f"{zeros}. Above E4M3's largest number, 448: {percent(m.saturated)}."
        )

    return Live(
        figure,
        update,
        describe,
        values=_choose(named),
        exponent=ipywidgets.IntSlider(value=0, min=-16, max=16, description="Scale by 2^"),
    )


def observer_ranges(values: Values) -> Live:
    """Where to end the range: at the largest value, at a percentile, or where the mean squared error is least.

    values: activations as they come, or several by name. Symmetric grids, so that one number is the range.
    """
    named = {name: _sample(x) for name, x in _by_name(values).items()}
    percentiles = (90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)

    @cache
    def experiment(values: str, bits: int) -> SimpleNamespace:
        x = named[values]
        observer = MSEObserver(bits, symmetric=True)
        observer.observe(x)
        qparams = observer.qparams()
        largest = float(x.abs().max())
        thresholds = largest * 2.0 ** np.linspace(-10, 0, 61)
        errors = np.array([relative_error(x, float(end), bits) for end in thresholds])
        best = float(qparams.scale) * qparams.qmax
        return SimpleNamespace(largest=largest, thresholds=thresholds / largest, errors=errors, best=best)

    @cache
    def measure(values: str, bits: int, percentile: float) -> SimpleNamespace:
        x, e = named[values], experiment(values, bits)
        observer = PercentileObserver(bits, symmetric=True, percentile=percentile)
        observer.observe(x)
        qparams = observer.qparams()
        ends = {"min–max": e.largest, "percentile": float(qparams.scale) * qparams.qmax, "MSE": e.best}
        return SimpleNamespace(
            ends={name: end / e.largest for name, end in ends.items()},
            errors={name: relative_error(x, end, bits) for name, end in ends.items()},
            clipped={name: float((x.abs() > end * 1.0001).float().mean()) for name, end in ends.items()},
            largest=e.largest,
        )

    def relative_error(x: Tensor, end: float, bits: int) -> float:
        qparams = qparams_from_range(torch.tensor(-end), torch.tensor(end), bits, symmetric=True)
        return _power(fake_quantize(x, qparams) - x) / _power(x)

    looks = {"MSE": (BLUE, "-", "o", 7), "percentile": (PURPLE, "-.", "D", 9), "min–max": (VERMILION, "--", "s", 10)}
    edges = 2.0 ** np.linspace(-10, 0, 61)
    figure, (top, bottom) = new_figure(2, 1, height=4.4, sharex=True, height_ratios=[1, 1.2])
    label(top, "How many values are how large", "", "number of values")
    label(bottom, "Error if the range ends there", "end of the range / largest |value|", "error [% of power]")
    bottom.set_xscale("log", base=2)
    bottom.set(xlim=(2.0**-10, 1.15), yscale="log", ylim=(1e-3, 150))
    bottom.set_xticks([2.0**k for k in range(-10, 1, 2)], ["1/1024", "1/256", "1/64", "1/16", "1/4", "1"])
    plain_ticks(bottom.yaxis)
    top.set(yscale="log", ylim=(0.7, 2 * max(len(x) for x in named.values())))
    bars = top.stairs(np.zeros(60), edges, baseline=0.5, fill=True, color=SKY_BLUE, animated=True)
    curve = bottom.plot(edges, np.ones(61), color=GREY, animated=True)[0]
    verticals, markers = {}, {}
    for name, (colour, style, marker, size) in looks.items():
        verticals[name] = top.axvline(1, color=colour, ls=style, animated=True, label=name)
        markers[name] = bottom.plot([1], [1], marker, ms=size, color=colour, mec="white", animated=True)[0]
        markers[name].set_zorder(4 - size / 10)  # where two choices agree, both are seen
    legend(top, loc="lower right", ncols=3, bbox_to_anchor=(1.0, 0.99), borderaxespad=0)

    def update(values: str, bits: int, percentile: float) -> None:
        m, e = measure(values, bits, percentile), experiment(values, bits)
        bars.set_data(np.histogram(named[values].abs().numpy() / m.largest, edges)[0] + 0.5)
        curve.set_data(e.thresholds, 100 * e.errors)
        for name in looks:
            verticals[name].set_xdata([m.ends[name]] * 2)
            markers[name].set_data([m.ends[name]], [100 * m.errors[name]])

    def describe(values: str, bits: int, percentile: float) -> str:
        m = measure(values, bits, percentile)
        parts = [
            f"{name if name != 'percentile' else f'percentile {percentile:g}'} ends at {m.ends[name] * m.largest:.3g}, "
            f"error {percent(m.errors[name])}, clips {percent(m.clipped[name])}"
            for name in looks
        ]
        return f"{_start(values)}{bits} bits: {'; '.join(parts)}."

    return Live(
        figure,
        update,
        describe,
        values=_choose(named),
        bits=ipywidgets.IntSlider(value=4, min=2, max=8, description="Bits"),
        percentile=ipywidgets.SelectionSlider(
            options=[(f"{p:g}", p) for p in percentiles], value=99.9, description="Percentile"
        ),
    )


def _by_name(values: Values) -> dict[str, Tensor]:
    named = dict(values) if isinstance(values, Mapping) else {"values": values}
    if not named or any(x.numel() == 0 or not bool(x.isfinite().all()) or not bool(x.any()) for x in named.values()):
        raise ValueError("values must be one tensor or several by name, each finite, not empty and not all zeros")
    return named


def _choose(named: Mapping[str, Tensor]) -> ipywidgets.Widget:
    """Buttons to choose among several tensors; hidden where there is only one."""
    buttons = ipywidgets.ToggleButtons(options=list(named), description="Values", style={"button_width": "auto"})
    if len(named) == 1:
        buttons.layout.display = "none"
    return buttons


def _start(name: str) -> str:
    return "" if name == "values" else f"{name[:1].upper()}{name[1:]}, "


def _sample(x: Tensor) -> Float[Tensor, " n"]:
    """At most MAX_VALUES values, evenly from the whole tensor, the largest and the smallest among them."""
    x = x.detach().float().flatten()
    step = max(1, -(-x.numel() // MAX_VALUES))
    return torch.cat([x[::step], x.min()[None], x.max()[None]]) if step > 1 else x


def _spread(x: np.ndarray, n: int) -> np.ndarray:
    """Indices of about n values to draw: half evenly by rank, half evenly along the axis, so that tails show too."""
    order = x.argsort()
    along = np.searchsorted(x[order], np.linspace(x.min(), x.max(), n // 2)).clip(0, len(x) - 1)
    by_rank = np.linspace(0, len(x) - 1, n // 2).astype(int)
    return order[np.unique(np.concatenate([along, by_rank]))]


def _rows(inputs: Float[Tensor, "*lead in"], columns: int) -> Float[Tensor, "tokens in"]:
    if inputs.shape[-1] != columns:
        raise ValueError(f"inputs must end in the weight's {columns} input channels, got {list(inputs.shape)}")
    return inputs.detach().float().reshape(-1, columns)[:2048]


def _halves(x: Float[Tensor, "tokens in"]) -> tuple[Tensor, Tensor]:
    if len(x) < 2:
        raise ValueError(f"inputs must hold at least two tokens, one half to calibrate and one to judge, got {len(x)}")
    return x[: len(x) // 2], x[len(x) // 2 :]


def _output_error(moved: Float[Tensor, "n out in"], gram: Float[Tensor, "in in"]) -> np.ndarray:
    """tr(dW G dWᵀ) for each of n changes dW of a weight."""
    return ((moved @ gram) * moved).sum((1, 2)).numpy()


def _fp8_bound(x: np.ndarray, code: str) -> np.ndarray:
    """Half the distance between the neighbouring numbers of a format, relative to x; 1 where it rounds to zero;
    the distance to the largest number where x lies beyond it."""
    format = fp8_format(code)
    exponent = np.maximum(np.floor(np.log2(x)), math.log2(format.min_normal))
    half_step = 2.0 ** (exponent - format.mantissa_bits - 1)
    bound = np.maximum(half_step / x, (x - format.max) / x)
    return np.minimum(bound, 1)


def _nearest(options: list[float], value: float) -> int:
    return min(range(len(options)), key=lambda i: abs(options[i] - value))


def _power(x: Tensor) -> float:
    return float(x.square().mean())
