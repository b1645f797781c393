"""Blocks of the paged cache over time: in use, cached, and the preemptions when they run out."""

from __future__ import annotations

from functools import cache

import ipywidgets
import numpy as np

from labsupport.widgets.inference.block_run import BlockRun, play_blocks
from labsupport.widgets.inference.time_axis import AT_ONCE, FixedTicks, round_up
from labsupport.widgets.live import Live
from labsupport.widgets.style import BLACK, BLUE, SKY_BLUE, VERMILION, label, legend, new_figure, percent


def block_use(num_requests: int = 16, max_num_seqs: int = 6, block_size: int = 8) -> Live:
    """The engine's scheduler and paged cache at work: blocks in use, and which requests run, wait or are preempted.

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
    clock = FixedTicks(bottom)
    used = top.stairs([0], [0, 1], baseline=[0], fill=True, color=BLUE, label="in use", animated=True)
    kept = top.stairs([0], [0, 1], baseline=[0], fill=True, color=SKY_BLUE, alpha=0.55, label="cached, unused",
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
        last = round_up(run.num_steps)
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
