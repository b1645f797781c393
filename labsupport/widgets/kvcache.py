"""The moving pictures of chapter 3: memory of the cache, time with and without it, blocks, and key-value heads.

Sizes and block tables are computed as the controls move; milliseconds and perplexities come in as tables that a cell of
the notebook has measured before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from labsupport.kvcache.cost import next_token_cost
from labsupport.kvcache.paged import PagedKVCache
from labsupport.kvcache.sizes import Preset, kv_bytes_per_token, weight_bytes
from labsupport.lm.model import LlamaConfig
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILION,
    YELLOW,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
)

if TYPE_CHECKING:
    import pandas as pd

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


def decoding(config: LlamaConfig, measured: pd.DataFrame) -> Live:
    """One more token with and without a cache: what the formula counts, and what the clock says.

    measured: indexed by tokens held; milliseconds in columns "with cache", "without" and, as estimated by the roofline,
    "with cache, roofline", "without, roofline".
    """
    lengths = [int(n) for n in measured.index]

    @cache
    def flops(length: int, cached: bool) -> int:
        return next_token_cost(config, length, cached=cached).flops

    figure, (left, right) = new_figure(1, 2, height=3.3)
    label(left, "Operations for one more token", "tokens held", "FLOP")
    label(right, "Milliseconds for one more token", "tokens held", "ms")
    kinds = (("without", False, VERMILION, "s-"), ("with cache", True, BLUE, "o-"))
    for name, cached, colour, style in kinds:
        left.plot(lengths, [flops(n, cached) for n in lengths], style, ms=4, color=colour, label=name)
        right.plot(lengths, measured[name], style, ms=4, color=colour, label=f"{name}, measured")
        right.plot(lengths, measured[f"{name}, roofline"], ":", color=colour, label=f"{name}, roofline")
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(lengths, [str(n) for n in lengths], minor=False)
        axis.xaxis.set_minor_locator(NullLocator())
        legend(axis, loc="upper left")
    left.set_ylim(top=30 * flops(lengths[-1], False))
    plain_ticks(right.yaxis)
    right.set_ylim(top=40 * float(measured["without"].max()))
    marks = [axis.plot([], [], "D", ms=9, mfc="none", mec=BLACK, mew=2.2, animated=True)[0] for axis in (left, right)]

    def update(length: int) -> None:
        marks[0].set_data([length] * 2, [flops(length, False), flops(length, True)])
        marks[1].set_data([length] * 2, [measured["without"][length], measured["with cache"][length]])

    def describe(length: int) -> str:
        fewer = flops(length, False) / flops(length, True)
        without, cached = measured["without"][length], measured["with cache"][length]
        return (
            f"{length} tokens held: {fewer:.0f} times fewer operations with the cache, {without / cached:.1f} times "
            f"faster ({without:.3g} ms and {cached:.3g} ms)."
        )

    slider = ipywidgets.SelectionSlider(options=lengths, value=lengths[-1], description="Tokens held")
    return Live(figure, update, describe, length=slider)


@dataclass(frozen=True)
class Snapshot:
    """What the block pool holds after one event; blocks by number, owners by name."""

    event: str
    owners: dict[int, list[str]]
    filled: dict[int, int]
    cached: int
    used: int
    reserved: int
    tables: dict[str, tuple[int, ...]]
    contiguous: dict[str, int]
    waiting: list[str]


def block_table(num_blocks: int = 24, block_size: int = 4, max_length: int = 24) -> Live:
    """A small paged cache at work, event by event, beside what reserving `max_length` for each sequence could do."""
    history = _story(num_blocks, block_size, max_length)
    slots = num_blocks * block_size
    rooms = slots // max_length
    columns = 6
    names = sorted({name for shot in history for owners in shot.owners.values() for name in owners})
    colours = dict(zip(names, (BLUE, ORANGE, GREEN, PURPLE, SKY_BLUE, YELLOW, VERMILION), strict=False))

    figure, (left, right) = new_figure(1, 2, height=3.9, width_ratios=[1.1, 1])
    label(left, f"Paged: {num_blocks} blocks of {block_size} tokens")
    label(right, f"Contiguous: {max_length} slots for each sequence", "slot", "")
    rows = -(-num_blocks // columns)
    left.set(xlim=(-0.05, columns), ylim=(rows, -0.05), xticks=[], yticks=[])
    right.set(xlim=(0, max_length), ylim=(rooms + 0.2, -0.2), yticks=[])
    for axis in (left, right):
        axis.spines[:].set_visible(False)
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    cells, texts = [], []
    for block in range(num_blocks):
        x, y = block % columns, block // columns
        left.add_patch(Rectangle((x, y), 0.92, 0.88, fill=False, edgecolor=LIGHT_GREY))
        parts = [left.add_patch(Rectangle((x, y), 0, 0.88, animated=True)) for _ in range(2)]
        cells.append(parts)
        text = left.text(x + 0.46, y + 0.46, "", ha="center", va="center", fontsize=9, animated=True)
        text.set_bbox(plate)
        texts.append(text)
    bars, bar_texts = [], []
    for room in range(rooms):
        right.add_patch(Rectangle((0, room), max_length, 0.8, fill=False, edgecolor=GREY))
        bars.append(right.add_patch(Rectangle((0, room), 0, 0.8, animated=True)))
        text = right.text(0.5, room + 0.4, "", va="center", fontsize=9, animated=True)
        text.set_bbox(plate)
        bar_texts.append(text)

    def update(event: int) -> None:
        shot = history[event]
        for block, (parts, text) in enumerate(zip(cells, texts, strict=True)):
            owners = shot.owners.get(block, [])
            width = 0.92 * shot.filled.get(block, 0) / block_size
            for part, (owner, share) in zip(parts, [(owners[:1], 0), (owners[1:2], 1)], strict=True):
                height = 0.88 / max(1, min(2, len(owners)))
                part.set_bounds(block % columns, block // columns + share * height, width if owner else 0, height)
                part.set_facecolor(colours[owner[0]] if owner else "none")
            text.set_text("+".join(owners))
            text.set_visible(bool(owners))
        rooms_now = list(shot.contiguous.items())
        for room, (bar, text) in enumerate(zip(bars, bar_texts, strict=True)):
            name, length = rooms_now[room] if room < len(rooms_now) else ("", 0)
            bar.set_width(length)
            bar.set_facecolor(colours.get(name, "none"))
            text.set_text(name)
            text.set_visible(bool(name))

    def describe(event: int) -> str:
        shot = history[event]
        used = sum(shot.contiguous.values())
        reserved = len(shot.contiguous) * max_length
        waiting = f", {' and '.join(shot.waiting)} must wait" if shot.waiting else ""
        paged = f"{shot.used} of {shot.reserved} reserved slots in use ({percent(shot.used / max(shot.reserved, 1))})"
        return (
            f"{event}. {shot.event} Paged: {len(shot.tables)} sequences, {paged}, {shot.cached} freed blocks still "
            f"cached. Contiguous: {used} of {reserved} ({percent(used / max(reserved, 1))}){waiting}."
        )

    slider = ipywidgets.IntSlider(value=0, min=0, max=len(history) - 1, description="Event")
    slider.value = len(history) // 2
    return Live(figure, update, describe, event=slider)


def _story(num_blocks: int, block_size: int, max_length: int) -> list[Snapshot]:
    """Run a fixed series of events on a real cache of one layer and one head, and write down each state."""
    pool = PagedKVCache(1, num_blocks, block_size, 1, 2)
    rooms = num_blocks * block_size // max_length
    generator = torch.Generator().manual_seed(0)
    history: list[Snapshot] = []
    lengths: dict[str, int] = {}  # what a contiguous cache would hold
    waiting: list[str] = []

    def write(name: str, tokens: list[int]) -> None:
        zeros = torch.zeros(1, 1, len(tokens), 2)
        pool.append(name, zeros, zeros, tokens)
        if name in lengths:
            lengths[name] += len(tokens)

    def add(name: str, tokens: list[int]) -> str:
        found = pool.add_sequence(name, tokens)
        if len(lengths) < rooms:
            lengths[name] = found
        else:
            waiting.append(name)
        write(name, tokens[found:])
        return f"{name} arrives with {len(tokens)} tokens" + (
            f", {found} of them found in the cache." if found else "."
        )

    def fork(parent: str, child: str) -> str:
        pool.fork(parent, child)
        if len(lengths) < rooms:
            lengths[child] = lengths.get(parent, 0)
        else:
            waiting.append(child)
        return f"{child} forks from {parent}: same blocks, counted twice."

    def step() -> str:
        copies = {name: pool.block_table(name) for name in pool.sequences}
        for name in list(pool.sequences):
            write(str(name), torch.randint(1000, (1,), generator=generator).tolist())
        copied = [
            str(name)
            for name, old in copies.items()
            if any(a != b for a, b in zip(old, pool.block_table(name), strict=False))
        ]
        return "Every sequence gets a token." + (f" {copied[0]} copied a shared block first." if copied else "")

    def free(name: str) -> str:
        pool.free(name)
        lengths.pop(name, None)
        if name in waiting:
            waiting.remove(name)
        return f"{name} is done: its blocks go back."

    prompt = list(range(100, 111))
    events: list[Callable[[], str]] = [
        lambda: "Nothing yet.",
        lambda: add("A", prompt),
        lambda: add("B", list(range(200, 205))),
        step,
        step,
        lambda: fork("A", "C"),
        step,
        step,
        lambda: add("D", list(range(300, 309))),
        step,
        lambda: free("B"),
        lambda: add("E", [*prompt[:8], 7, 7]),
        step,
        step,
        lambda: add("F", list(range(400, 403))),
        step,
        lambda: free("A"),
        step,
        lambda: free("C"),
        lambda: add("G", [*prompt, 9]),
        step,
        lambda: free("D"),
    ]
    for happen in events:
        event = happen()
        pool.check_integrity()
        tables = {str(name): pool.block_table(name) for name in pool.sequences}
        owners: dict[int, list[str]] = {}
        filled: dict[int, int] = {}
        for name, table in tables.items():
            for index, block in enumerate(table):
                owners.setdefault(block, []).append(name)
                tokens = min(block_size, pool.length(name) - index * block_size)
                filled[block] = max(filled.get(block, 0), tokens)
        usage = pool.usage()
        history.append(
            Snapshot(
                event,
                owners,
                filled,
                usage["cached_blocks"],
                usage["used_slots"],
                usage["reserved_slots"],
                tables,
                dict(lengths),
                list(waiting),
            )
        )
    return history


def heads(num_heads: int, measured: pd.DataFrame) -> Live:
    """From MHA to MQA: which query heads share a key-value head, and what sharing costs before and after training.

    measured: indexed by the number of KV heads; columns "bytes a token", "pooled" and "uptrained" (perplexity).
    """
    options = [int(n) for n in measured.index]
    figure, (left, right) = new_figure(1, 2, height=3.3, width_ratios=[1, 1.1])
    label(left, "Who reads which keys and values")
    label(right, "Bytes and quality", "KV cache [bytes a token]", "perplexity")
    left.set(xlim=(-0.7, num_heads - 0.3), ylim=(-0.6, 1.6), xticks=[])
    left.set_yticks([0, 1], ["KV heads", "query heads"])
    left.spines[:].set_visible(False)
    left.plot(range(num_heads), [1] * num_heads, "o", ms=13, color=ORANGE)
    lines = [left.plot([i, i], [1, 0], "-", color=GREY, lw=1.2, zorder=0, animated=True)[0] for i in range(num_heads)]
    shared = left.plot([], [], "s", ms=15, color=BLUE, animated=True)[0]
    for name, colour, style in (("pooled", VERMILION, "s--"), ("uptrained", BLUE, "o-")):
        right.plot(measured["bytes a token"], measured[name], style, ms=5, color=colour, label=f"{name}")
    legend(right, loc="upper right")
    right.set_ylim(bottom=0)
    marks = right.plot([], [], "D", ms=10, mfc="none", mec=BLACK, mew=2.2, animated=True)[0]

    def update(kv_heads: int) -> None:
        group = num_heads // kv_heads
        centres = [group * i + (group - 1) / 2 for i in range(kv_heads)]
        for i, line in enumerate(lines):
            line.set_data([i, centres[i // group]], [1, 0])
        shared.set_data(centres, [0] * kv_heads)
        row = measured.loc[kv_heads]
        marks.set_data([row["bytes a token"]] * 2, [row["pooled"], row["uptrained"]])

    def describe(kv_heads: int) -> str:
        row = measured.loc[kv_heads]
        kind = {num_heads: "MHA", 1: "MQA"}.get(kv_heads, "GQA")
        return (
            f"{kind}: {num_heads} query heads share {kv_heads} KV heads, {row['bytes a token']:,.0f} bytes a token. "
            f"Perplexity {row['pooled']:.3g} just pooled, {row['uptrained']:.3g} after training on."
        )

    slider = ipywidgets.SelectionSlider(options=options, value=options[len(options) // 2], description="KV heads")
    return Live(figure, update, describe, kv_heads=slider)


__all__ = ["block_table", "decoding", "heads", "memory"]
