"""Weights and KV cache of published models against a GPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import ipywidgets
import numpy as np

from labsupport.kvcache.sizes import Preset, kv_bytes_per_token, weight_bytes
from labsupport.lm.config import LlamaConfig
from labsupport.widgets.live import Live
from labsupport.widgets.style import BLUE, GREEN, GREY, ORANGE, VERMILION, label, legend, new_figure, plain_ticks

GIB = 2**30
FORMATS = {"16 bits": 2.0, "8 bits": 1.0, "4 bits": 0.5}
POWERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def memory(presets: Mapping[str, Preset]) -> Live:
    """Weights and KV cache of published models against a GPU's memory, as batch, length, format and heads change.

    Weights are 16-bit throughout. Cache formats are counted without the scales that 8 and 4 bits need.
    """
    lengths = [1024 * 2**i for i in range(8)]
    all_heads = ["as published", "MHA", "MQA"]

    def config_of(model: str, heads: str) -> LlamaConfig:
        config = presets[model].config
        return {
            "as published": config,
            "MHA": replace(config, num_kv_heads=config.num_heads),
            "MQA": replace(config, num_kv_heads=1),
        }[heads]

    figure, (left, right) = new_figure(1, 2, height=3.3, width_ratios=[1.15, 1])
    label(left, "What fills the memory", "GiB", "")
    label(right, "KV cache of this batch", "tokens in each sequence", "GiB")
    left.set(ylim=(-0.5, 0.7), yticks=[])
    weights_bar = left.barh([0], [1], height=0.3, color=GREY, label="weights, 16 bits")[0]
    cache_bar = left.barh([0], [1], height=0.3, left=[1], color=BLUE, label="KV cache")[0]
    limit = left.axvline(80, color=VERMILION, ls="--", lw=2, label="the GPU")
    legend(left, loc="upper left", ncols=3, columnspacing=1.0, handlelength=1.4)
    curves = {
        heads: right.plot(lengths, np.ones(len(lengths)), style, ms=4, color=colour, label=heads)[0]
        for heads, style, colour in zip(all_heads, ("o-", "s--", "D:"), (BLUE, ORANGE, GREEN), strict=True)
    }
    right.set(xscale="log", yscale="log")
    plain_ticks(right.xaxis)
    right.set_xticks(lengths, [f"{n // 1024}k" for n in lengths], minor=False)
    plain_ticks(right.yaxis)
    free = right.axhline(10, color=VERMILION, ls="--", lw=2, label="left by the weights")
    legend(right, loc="upper left")
    here = right.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2)[0]

    def sizes(model: str, heads: str, length: int, batch: int, kv: str) -> tuple[float, float]:
        config = config_of(model, heads)
        return weight_bytes(presets[model].config) / GIB, batch * length * kv_bytes_per_token(config, FORMATS[kv]) / GIB

    def update(model: str, length: int, batch: int, heads: str, kv: str, gpu: int) -> None:
        weights, held = sizes(model, heads, length, batch, kv)
        weights_bar.set_width(weights)
        cache_bar.set_x(weights)
        cache_bar.set_width(held)
        cache_bar.set_color(BLUE if weights + held <= gpu else VERMILION)
        limit.set_xdata([gpu, gpu])
        left.set_xlim(0, 1.1 * max(gpu, weights + held))
        for name, curve in curves.items():
            curve.set_ydata([sizes(model, name, n, batch, kv)[1] for n in lengths])
        free.set_ydata([max(gpu - weights, 1e-6)] * 2)
        free.set_visible(gpu > weights)
        here.set_data([length], [held])
        lowest, highest = sizes(model, "MQA", lengths[0], batch, kv)[1], sizes(model, "MHA", lengths[-1], batch, kv)[1]
        right.set_ylim(lowest / 2, highest * 4)

    def describe(model: str, length: int, batch: int, heads: str, kv: str, gpu: int) -> str:
        weights, held = sizes(model, heads, length, batch, kv)
        config = config_of(model, heads)
        fit = max(0, int((gpu - weights) / (held / batch)))
        verdict = "fits" if weights + held <= gpu else "does not fit"
        a_token = kv_bytes_per_token(config, FORMATS[kv]) / 1024
        return (
            f"{model}, {config.num_kv_heads} KV heads, {kv}: {a_token:,.4g} KiB a token. Weights {weights:.1f} GiB + "
            f"cache of {batch} × {length:,} tokens {held:.3g} GiB = {weights + held:.1f} GiB: {verdict} in {gpu} GiB. "
            f"At most {fit:,} such sequences would."
        )

    return Live(
        figure,
        update,
        describe,
        model=ipywidgets.SelectionSlider(options=list(presets), value="Llama 2 7B", description="Model"),
        length=ipywidgets.SelectionSlider(
            options=[(f"{n // 1024}k", n) for n in lengths], value=4096, description="Tokens each"
        ),
        batch=ipywidgets.SelectionSlider(options=POWERS, value=16, description="Sequences"),
        heads=ipywidgets.SelectionSlider(options=all_heads, description="KV heads"),
        kv=ipywidgets.SelectionSlider(options=list(FORMATS), description="KV format"),
        gpu=ipywidgets.SelectionSlider(options=[16, 24, 40, 80, 141, 192], value=80, description="GPU [GiB]"),
    )
