"""GPTQ, column by column: how the columns still to come take over the rounding error."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.quantization.gptq import gptq_steps
from labsupport.quantization.rtn import rtn_quantize
from labsupport.widgets.live import Live
from labsupport.widgets.quantization.tensors import halves, input_rows, output_error
from labsupport.widgets.style import BLACK, BLUE, DIVERGING, VERMILION, colorbar, label, legend, new_figure, percent


def gptq_propagation(
    weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"], rows: int = 24, columns: int = 128
) -> Live:
    """GPTQ column by column: what is rounded, what later columns take over, and the output error so far beside RTN's.

    weight, inputs: a layer's weight and real activations; the first `rows` output and `columns` input channels are
    used, so that single weights are visible. The first half of the activations gives the Hessian; the second half,
    which GPTQ never sees, measures the error. With uncorrelated inputs (Hessian = identity) GPTQ becomes
    round-to-nearest: it gains only from correlation.
    """
    x = input_rows(inputs, weight.shape[1])[:, :columns]
    weight = weight.detach().float()[:rows, :columns].contiguous()
    rows, columns = weight.shape
    seen, held_out = halves(x)
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
            gptq=output_error(moved, judge) / power,
            rtn=output_error(rounded * first, judge) / power,
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
