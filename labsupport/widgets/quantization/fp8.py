"""FP8's formats beside INT8: a step that grows with the value against one step for all."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace

import ipywidgets
import numpy as np

from labsupport.quantization.affine import fake_quantize
from labsupport.quantization.fp8 import fp8_fake_quantize, fp8_format
from labsupport.widgets.live import Live
from labsupport.widgets.quantization.tensors import Values, by_name, choose, power_of, sample, start_of
from labsupport.widgets.style import BLUE, GREEN, SKY_BLUE, VERMILION, label, legend, new_figure, percent


def fp8_grid(values: Values) -> Live:
    """E4M3 and E5M2 beside INT8: a step that grows with the value against one step for all.

    values: one tensor, or several by name. They are multiplied by a power of 2 and cast; INT8's scale is set by the
    largest value, as usual.
    """
    named = {name: sample(x) for name, x in by_name(values).items()}
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
            error={name: math.sqrt(power_of(cast - x) / power_of(x)) for name, cast in casts.items()},
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
        top.plot(fine, fp8_bound(fine, code), style, color=colour, label=name)
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
            f"{start_of(values)}scaled by 2^{exponent}: largest |x| {m.largest:.3g}. RMS error: {errors}. "
            f"Lost to zero: {zeros}. Above E4M3's largest number, 448: {percent(m.saturated)}."
        )

    return Live(
        figure,
        update,
        describe,
        values=choose(named),
        exponent=ipywidgets.IntSlider(value=0, min=-16, max=16, description="Scale by 2^"),
    )


def fp8_bound(x: np.ndarray, code: str) -> np.ndarray:
    """The relative error of a cast at most: half the distance between neighbouring numbers of the format.

    It is 1 where x is rounded to zero, and the distance to the largest number where x lies beyond that.
    """
    format = fp8_format(code)
    exponent = np.maximum(np.floor(np.log2(x)), math.log2(format.min_normal))
    half_step = 2.0 ** (exponent - format.mantissa_bits - 1)
    bound = np.maximum(half_step / x, (x - format.max) / x)
    return np.minimum(bound, 1)
