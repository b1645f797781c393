"""The moving pictures of chapter 4's first half: slots and blocks over time, FP8's grid beside INT8's, the roofline.

The first is played by `labsupport.inference.simulate`; in the second the engine's own scheduler and cache work, only
no model computes; the third casts with torch's own types; the fourth counts with `labsupport.kvcache.cost`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import Patch
from torch import Tensor

from labsupport.inference.arrivals import poisson_requests
from labsupport.inference.request import Request
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.scheduler import Plan, Scheduler
from labsupport.inference.simulate import Policy, affine_cost, simulate
from labsupport.inference.timeline import Phase, Simulation
from labsupport.kvcache import PagedBatch, PagedKVCache
from labsupport.kvcache.cost import Cost, Estimate, Machine, forward_cost, next_token_cost, roofline
from labsupport.kvcache.sizes import Preset
from labsupport.lm.tokenizer import ByteTokenizer
from labsupport.quantization import fake_quantize
from labsupport.quantization.fp8 import fp8_codes, fp8_fake_quantize, fp8_format
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    GREEN,
    LIGHT_GREY,
    ORANGE,
    SKY_BLUE,
    STYLE,
    VERMILION,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
)

AT_ONCE = 1e6  # requests a second: as good as all together


# Slots over time -----------------------------------------------------------------------------------------------------

POLICY_NAMES: dict[Policy, str] = {
    "static": "Static",
    "in_flight": "In-flight",
    "chunked": "In-flight, prompts in chunks",
}
POLICY_LINES: dict[Policy, tuple[str, str]] = {
    "static": (VERMILION, "-"),
    "in_flight": (ORANGE, "--"),
    "chunked": (BLUE, "-."),
}
SLOT_COLOURS = {Phase.PREFILL: ORANGE, Phase.DECODE: BLUE, Phase.DONE: LIGHT_GREY}


def scheduler_timeline(
    base_ms: float = 20.0, prefill_ms: float = 0.5, decode_ms: float = 1.0, num_requests: int = 24
) -> Live:
    """Who is in which slot, and how many wait, under three ways of batching the same requests.

    A step is taken to cost `base_ms`, `prefill_ms` for each prompt token and `decode_ms` for each row that decodes.
    Lengths are drawn evenly from 1/4 to 7/4 of the mean that the slider gives.
    """
    cost = affine_cost(base_ms / 1e3, prefill_ms / 1e3, decode_ms / 1e3)

    @cache
    def play(rate: float, prompt: int, output: int, slots: int, budget: int) -> dict[Policy, _Played]:
        prompts, outputs = ((max(1, mean // 4), mean + 3 * mean // 4) for mean in (prompt, output))
        requests = poisson_requests(rate, num_requests, prompts, outputs, seed=3)
        return {
            policy: _Played.of(simulate(requests, policy, slots, cost, budget if policy == "chunked" else None))
            for policy in POLICY_NAMES
        }

    figure, axes = new_figure(4, 1, height=5.4, height_ratios=[1, 1, 1, 0.8])
    pictures, figures = {}, {}
    for axis, (policy, name) in zip(axes, POLICY_NAMES.items(), strict=False):
        label(axis, name, "", "slot")
        axis.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        pictures[policy] = axis.add_collection(PolyCollection([], edgecolors="white", linewidths=0.5, animated=True))
        figures[policy] = axis.text(
            1, 1.06, "", transform=axis.transAxes, ha="right", va="bottom", fontsize=9, animated=True
        )
    queue = axes[3]
    step = f"{base_ms:g} ms + {prefill_ms:g} ms a prompt token + {decode_ms:g} ms a row"
    label(queue, "", f"seconds, if a step takes {step}", "waiting")
    lines = {
        policy: queue.plot(
            [], [], style, color=colour, drawstyle="steps-post", label=POLICY_NAMES[policy], animated=True
        )[0]
        for policy, (colour, style) in POLICY_LINES.items()
    }
    queue.set(ylim=(0, num_requests))
    legend(queue, loc="upper right")
    clock = _FixedTicks(queue)
    names = ["reads a prompt", "decodes", "done, waits for the rest of its batch"]
    with rc_context(STYLE):
        figure.legend(
            handles=[Patch(color=each, label=name) for each, name in zip(SLOT_COLOURS.values(), names, strict=True)],
            loc="outside upper center", ncols=3, columnspacing=1.4, handlelength=1.2,
        )  # fmt: skip

    def update(rate: float, prompt: int, output: int, slots: int, budget: int) -> None:
        runs = play(rate, prompt, output, slots, budget)
        seconds = _round_up(max(run.end for run in runs.values()))
        clock.reach(seconds)
        for policy, run in runs.items():
            pictures[policy].set_verts(run.bars * [1 / seconds, 1 / slots])
            pictures[policy].set_facecolor(run.colours)
            figures[policy].set_text(
                f"{run.row['tokens_per_second']:.0f} tokens/s · first token after {_seconds(run.row['mean_ttft'])} on "
                f"average · longest gap {_seconds(run.row['longest_gap'])}"
            )
            times, waiting = run.queue
            lines[policy].set_data(np.array([*times, seconds]) / seconds, [*waiting, 0])

    def describe(rate: float, prompt: int, output: int, slots: int, budget: int) -> str:
        arrivals = "all at once" if rate == AT_ONCE else f"{rate:g} a second"
        told = []
        for policy, run in play(rate, prompt, output, slots, budget).items():
            told.append(
                f"{POLICY_NAMES[policy]}: {run.row['seconds']:.3g} s, {percent(run.row['utilization'])} of the slots "
                f"at work, longest gap {_seconds(run.row['longest_gap'])}"
            )
        return (
            f"{num_requests} requests, {arrivals}, prompts of about {prompt} and answers of about {output} tokens, "
            f"{slots} slots, chunks within {budget} tokens a step. " + ". ".join(told) + "."
        )

    powers = [16, 32, 64, 128, 256, 512, 1024]
    return Live(
        figure,
        update,
        describe,
        rate=ipywidgets.SelectionSlider(
            options=[*((f"{r:g} /s", r) for r in (0.5, 1, 2, 4, 8, 16)), ("all at once", AT_ONCE)], value=4,
            description="Arrivals",
        ),
        prompt=ipywidgets.SelectionSlider(options=powers, value=128, description="Prompt tokens"),
        output=ipywidgets.SelectionSlider(options=[4, 8, 16, 32, 64, 128], value=32, description="Answer tokens"),
        slots=ipywidgets.SelectionSlider(options=[1, 2, 4, 8, 16], value=4, description="Slots"),
        budget=ipywidgets.SelectionSlider(
            options=[16, 32, 64, 128, 256], value=64, description="Tokens a step, chunked"
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class _Played:
    """A simulation, ready to be drawn: bars [bar, corner, (second, slot from below)], each a request in a phase."""

    row: dict[str, Any]
    end: float
    bars: np.ndarray
    colours: list[str]
    queue: tuple[list[float], list[int]]

    @classmethod
    def of(cls, run: Simulation) -> _Played:
        bars, colours = [], []
        for slot in range(run.max_num_seqs):
            low = run.max_num_seqs - slot - 0.92
            steps = ((step.slots[slot], step.start, step.start + step.seconds) for step in run.steps)
            for (_, phase), group in itertools.groupby(steps, key=lambda step: step[0]):
                if phase != Phase.EMPTY:
                    spans = list(group)
                    left, right = spans[0][1], spans[-1][2]
                    bars.append([(left, low), (right, low), (right, low + 0.84), (left, low + 0.84)])
                    colours.append(SLOT_COLOURS[phase])
        end = run.steps[-1].start + run.steps[-1].seconds
        return cls(run.summary(), end, np.array(bars), colours, _queue(run))


def _queue(run: Simulation) -> tuple[list[float], list[int]]:
    """When the number of requests that wait changes, and to what."""
    events = [(result.request.arrival, 1) for result in run.results]
    events += [(result.admitted, -1) for result in run.results]
    events.sort(key=lambda event: (event[0], -event[1]))  # who is admitted at once has come before
    return [time for time, _ in events], list(itertools.accumulate(change for _, change in events))


# Blocks over time ----------------------------------------------------------------------------------------------------


@dataclass
class BlockRun:
    """What a scheduler did with its blocks, step by step."""

    in_use: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)  # in nobody's use, content kept
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    preempted_at: list[int] = field(default_factory=list)
    needed: int = 0  # tokens that had to be computed at least
    computed: int = 0

    @property
    def num_steps(self) -> int:
        return len(self.in_use)


def block_use(num_requests: int = 16, max_num_seqs: int = 6, block_size: int = 8) -> Live:
    """The engine's scheduler and paged cache at work: blocks in use, who runs, who waits, who is thrown out.

    Prompts have 8 to 40 tokens, answers 16 to 48. Arrivals are counted in steps.
    """

    @cache
    def play(num_blocks: int, rate: float, prefix_caching: bool) -> BlockRun:
        return play_blocks(num_blocks, rate, prefix_caching, num_requests, max_num_seqs, block_size)

    pools = [12, 14, 16, 20, 24, 32, 40, 48]
    figure, axes = new_figure("AC;BC", height=4.2, width_ratios=[2.6, 1], height_ratios=[1.7, 1])
    top, bottom, right = axes["A"], axes["B"], axes["C"]
    label(top, f"Blocks of {block_size} tokens", "", "blocks")
    label(bottom, "", "step", "requests")
    label(right, "Tokens computed")
    top.set(xlim=(0, 1), ylim=(0, pools[-1] * 1.15), xticks=[])
    clock = _FixedTicks(bottom)
    used = top.stairs([0], [0, 1], baseline=[0], fill=True, color=BLUE, label="in use", animated=True)
    kept = top.stairs([0], [0, 1], baseline=[0], fill=True, color=SKY_BLUE, alpha=0.55, label="kept, in nobody's use",
                      animated=True)  # fmt: skip
    pool = top.axhline(1, color=BLACK, lw=1.4, ls="--", label="all there are", animated=True)
    marks = top.plot([], [], "v", color=VERMILION, ms=9, label="preemption", animated=True)[0]
    legend(top, loc="upper left", ncols=4, columnspacing=1.0, handlelength=1.3, bbox_to_anchor=(-0.01, 1.0))
    runs = bottom.plot([], [], "-", color=BLUE, drawstyle="steps-post", label="running", animated=True)[0]
    waits = bottom.plot([], [], "--", color=VERMILION, drawstyle="steps-post", label="waiting", animated=True)[0]
    legend(bottom, loc="upper right")
    bottom.set(ylim=(0, num_requests + 1))
    bars = right.bar(["needed", "computed\nagain"], [1, 1], width=0.62, color=[BLUE, VERMILION], animated=True)
    texts = [right.text(i, 1, "", ha="center", va="bottom", animated=True) for i in range(2)]
    most = play(pools[-1], AT_ONCE, True).needed
    right.set(ylim=(0, most * 1.15))

    def update(num_blocks: int, rate: float, prefix_caching: bool) -> None:
        run = play(num_blocks, rate, prefix_caching)
        last = _round_up(run.num_steps)
        clock.reach(last)
        edges = np.arange(run.num_steps + 1) / last
        in_use = np.array(run.in_use)
        used.set_data(in_use, edges, np.zeros_like(in_use))
        kept.set_data(in_use + run.cached, edges, in_use)
        pool.set_ydata([num_blocks, num_blocks])
        marks.set_data(np.array(run.preempted_at) / last, [num_blocks + 1.5] * len(run.preempted_at))
        runs.set_data(edges, [*run.running, 0])
        waits.set_data(edges, [*run.waiting, 0])
        for bar, text, count in zip(bars, texts, (run.needed, run.computed - run.needed), strict=True):
            bar.set_height(count)
            text.set_y(count + most * 0.01)
            text.set_text(f"{count:,}")

    def describe(num_blocks: int, rate: float, prefix_caching: bool) -> str:
        run = play(num_blocks, rate, prefix_caching)
        arrivals = "all at once" if rate == AT_ONCE else f"one in {1 / rate:g} steps"
        again = run.computed - run.needed
        return (
            f"{num_blocks} blocks, {num_requests} requests, {arrivals}, prefix caching "
            f"{'on' if prefix_caching else 'off'}: {run.num_steps} steps, at most {max(run.in_use)} blocks in use and "
            f"{max(run.running)} requests running, {len(run.preempted_at)} preemptions, {again:,} tokens computed "
            f"again ({percent(again / run.needed)})."
        )

    return Live(
        figure,
        update,
        describe,
        num_blocks=ipywidgets.SelectionSlider(options=pools, value=16, description="Blocks"),
        rate=ipywidgets.SelectionSlider(
            options=[*((f"1 in {n} steps", 1 / n) for n in (20, 10, 5, 2)), ("all at once", AT_ONCE)], value=1 / 5,
            description="Arrivals",
        ),
        prefix_caching=ipywidgets.Checkbox(value=False, indent=False, description="Prefix caching"),
    )  # fmt: skip


def play_blocks(
    num_blocks: int, rate: float, prefix_caching: bool, num_requests: int, max_num_seqs: int, block_size: int
) -> BlockRun:
    """Serve random requests without a model: only the scheduler's and the cache's own work is done."""
    pool = PagedKVCache(1, num_blocks, block_size, 1, 1, enable_prefix_caching=prefix_caching)
    scheduler = Scheduler(pool, max_num_seqs, max_num_batched_tokens=64)
    draw, tokenizer, run = random.Random(0), ByteTokenizer(), BlockRun()
    arrivals, clock = [], 0.0
    for number in range(num_requests):
        clock += draw.expovariate(1) / rate
        prompt = [draw.randrange(256) for _ in range(draw.randint(8, 40))]
        params = SamplingParams(max_tokens=draw.randint(16, 48), temperature=0.0, ignore_eos=True)
        arrivals.append((clock, Request(number, prompt, params, tokenizer)))
        run.needed += len(prompt) + params.max_tokens - 1  # the last token is never read
    arrivals.reverse()
    while arrivals or scheduler.has_unfinished:
        while arrivals and arrivals[-1][0] <= run.num_steps:
            scheduler.add(arrivals.pop()[1])
        plan = scheduler.schedule() if scheduler.has_unfinished else Plan()
        _pretend_to_compute(pool, plan)
        usage = pool.usage()
        run.preempted_at += [run.num_steps] * len(plan.preempted)
        run.computed += plan.num_tokens
        run.in_use.append(usage["used_blocks"])
        run.cached.append(usage["cached_blocks"])
        run.running.append(len(scheduler.running))
        run.waiting.append(len(scheduler.waiting))
        for each in plan.scheduled:
            if each.samples and (reason := each.request.append_token(draw.randrange(256))) is not None:
                scheduler.finish(each.request.request_id, reason)
    return run


def _pretend_to_compute(pool: PagedKVCache, plan: Plan) -> None:
    """Reserve, count and hash what a model's pass would write; nothing is written."""
    parts = [plan.decodes] if plan.decodes else []
    parts += [[chunk] for chunk in plan.chunks]
    for part in parts:
        batch = PagedBatch(pool, [each.request.request_id for each in part])
        rows, time = batch.feed([each.token_ids for each in part]).shape
        batch.positions(rows, time)
        batch.advance(time)


# Two grids of eight bits ---------------------------------------------------------------------------------------------

GRIDS = {"INT8": (VERMILION, "s--"), "E4M3": (BLUE, "o-"), "E5M2": (GREEN, "D:")}


def fp8_grid(values: Mapping[str, Float[Tensor, "*shape"]] | None = None) -> Live:
    """One outlier sets the scale of all: what is left for the others on INT8's even grid and on FP8's uneven ones.

    values: tensors by name, used in units of their own RMS; None: a bell curve. To each an outlier is added that is
    so many times as large.
    """
    named = {"bell curve": torch.randn(4096, generator=torch.Generator().manual_seed(0))} if values is None else values
    named = {name: _in_units_of_rms(x) for name, x in named.items()}
    outliers = [8 * 2**k for k in range(11)]
    edges = np.linspace(-4, 4, 65)

    @cache
    def measure(values: str, outlier: int) -> dict[str, tuple[float, float]]:
        """Of each grid: RMS error of the ordinary values, and the share of them that become 0."""
        x = torch.cat([named[values], torch.tensor([float(outlier)])])
        nonzero = x[:-1] != 0
        cast = {"INT8": fake_quantize(x, symmetric=True)[:-1]}
        cast |= {name: fp8_fake_quantize(x, name.lower())[:-1] for name in ("E4M3", "E5M2")}
        return {
            name: (float((y - x[:-1]).square().mean().sqrt()), float((y[nonzero] == 0).float().mean()))
            for name, y in cast.items()
        }

    figure, (left, right) = new_figure(1, 2, height=3.5, width_ratios=[1.25, 1])
    label(left, "Levels where the values are", "value / RMS", "")
    label(right, "Error of the ordinary values", "outlier / RMS", "RMS error / RMS value")
    left.set(xlim=(-4, 4), ylim=(-0.1, 4.6))
    left.set_yticks([2.5, 1.5, 0.5], list(GRIDS))
    left.tick_params(axis="y", length=0)
    left.spines["left"].set_visible(False)
    bars = left.stairs(np.full(64, 3.2), edges, baseline=3.2, fill=True, color=LIGHT_GREY, animated=True)
    rows = {}
    for row, (name, (colour, _)) in enumerate(GRIDS.items()):
        rows[name] = left.add_collection(LineCollection([], colors=colour, linewidths=0.8, animated=True))
        rows[name].set_zorder(2 + row)
    counts = {
        name: left.text(3.98, 2.94 - row, "", ha="right", va="center", fontsize=8, animated=True, zorder=9,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        for row, name in enumerate(GRIDS)
    }  # fmt: skip
    curves = {
        name: right.plot(outliers, np.ones(len(outliers)), style, ms=4, color=colour, label=name, animated=True)[0]
        for name, (colour, style) in GRIDS.items()
    }
    right.set(xscale="log", yscale="log", ylim=(3e-3, 2))
    right.set_xticks(outliers[::2], [f"{n:g}" for n in outliers[::2]], minor=False)
    plain_ticks(right.xaxis, outliers[::2])
    right.set_yticks([0.01, 0.1, 1], ["1 %", "10 %", "100 %"])
    legend(right, loc="lower right")
    here = right.plot([], [], "D", ms=10, mfc="none", mec=BLACK, mew=2.0, animated=True)[0]

    def levels(name: str, outlier: int) -> np.ndarray:
        if name == "INT8":
            grid = np.arange(-127, 128) * (outlier / 127)
        else:
            codes = fp8_codes(name.lower())
            grid = np.unique(codes[codes.isfinite()].numpy()) * (outlier / fp8_format(name.lower()).max)
        return grid[abs(grid) <= 4]

    def update(values: str, outlier: int) -> None:
        density = np.histogram(named[values].numpy(), edges)[0]
        bars.set_data(3.2 + 1.3 * density / density.max(), edges)
        for row, name in enumerate(GRIDS):
            grid = levels(name, outlier)
            rows[name].set_segments([[(x, 2.1 - row), (x, 2.75 - row)] for x in grid])
            counts[name].set_text(f"{len(grid)} levels")
            curves[name].set_ydata([measure(values, each)[name][0] for each in outliers])
        here.set_data([outlier] * len(GRIDS), [measure(values, outlier)[name][0] for name in GRIDS])

    def describe(values: str, outlier: int) -> str:
        told = [
            f"{name}: {len(levels(name, outlier))} levels between -4 and 4, error {percent(error)}, {percent(lost)} "
            "of the values become 0"
            for name, (error, lost) in measure(values, outlier).items()
        ]
        return f"{values[:1].upper()}{values[1:]}, outlier of {outlier} RMS. {'; '.join(told)}."

    choose = ipywidgets.ToggleButtons(options=list(named), description="Values", style={"button_width": "auto"})
    if len(named) == 1:
        choose.layout.display = "none"
    slider = ipywidgets.SelectionSlider(options=outliers, value=64, description="Outlier / RMS")
    return Live(figure, update, describe, values=choose, outlier=slider)


def _in_units_of_rms(x: Tensor, most: int = 20_000) -> Float[Tensor, " n"]:
    x = x.detach().float().flatten()
    if not len(x) or not bool(x.isfinite().all()) or not bool(x.any()):
        raise ValueError("values must hold tensors that are finite, not empty and not all zeros")
    x = x[:: -(-len(x) // most)]
    return x / x.square().mean().sqrt()


# What a machine allows -----------------------------------------------------------------------------------------------

WEIGHT_FORMATS = {"16 bits": (2.0, BLUE, "o-"), "8 bits": (1.0, ORANGE, "s--"), "4 bits": (0.5, GREEN, "D:")}


def roofline_limits(presets: Mapping[str, Preset], machines: Mapping[str, Machine]) -> Live:
    """Where decoding and prefill lie under the roof, and the tokens a second that it allows, as the batch grows.

    Arithmetic is taken to be equally fast for all weight formats, and the cache to have 16 bits.
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


# Helpers -------------------------------------------------------------------------------------------------------------


class _FixedTicks:
    """Five ticks from 0 to 1 whose labels are animated: the axis itself never has to be drawn again."""

    def __init__(self, axes: Axes) -> None:
        places = np.linspace(0, 1, 5)
        axes.set(xlim=(0, 1))
        axes.set_xticks(places, ["0"] * 5)  # they keep the room below the axis, and are not seen
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


def _round_up(value: float) -> float:
    """To a round number with four round quarters."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.3g} s"


__all__ = ["BlockRun", "block_use", "fp8_grid", "play_blocks", "roofline_limits", "scheduler_timeline"]
