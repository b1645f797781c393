"""Slots over time under three ways of batching, as `labsupport.inference.simulate` plays them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import ipywidgets
import numpy as np
from matplotlib import rc_context
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from labsupport.inference.arrivals import poisson_requests
from labsupport.inference.simulate import Phase, Policy, Simulation, affine_cost, simulate
from labsupport.widgets.inference.time_axis import AT_ONCE, FixedTicks, round_up
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLUE,
    LIGHT_GREY,
    ORANGE,
    STYLE,
    VERMILION,
    duration,
    label,
    legend,
    new_figure,
    percent,
)

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
    """Which request is in which slot, and how many wait, under three ways of batching the same requests.

    A step costs `base_ms`, `prefill_ms` for each prompt token and `decode_ms` for each row that decodes. Lengths are
    drawn uniformly from 1/4 to 7/4 of the mean that the slider sets.
    """
    cost = affine_cost(base_ms / 1e3, prefill_ms / 1e3, decode_ms / 1e3)

    @cache
    def play(rate: float, prompt: int, output: int, slots: int, budget: int) -> dict[Policy, Played]:
        prompts, outputs = ((max(1, mean // 4), mean + 3 * mean // 4) for mean in (prompt, output))
        requests = poisson_requests(rate, num_requests, prompts, outputs, seed=3)
        return {
            policy: Played.of(simulate(requests, policy, slots, cost, budget if policy == "chunked" else None))
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
    clock = FixedTicks(queue)
    names = ["reads a prompt", "decodes", "done, waits for the rest of its batch"]
    with rc_context(STYLE):
        figure.legend(
            handles=[Patch(color=each, label=name) for each, name in zip(SLOT_COLOURS.values(), names, strict=True)],
            loc="outside upper center", ncols=3, columnspacing=1.4, handlelength=1.2,
        )  # fmt: skip

    def update(rate: float, prompt: int, output: int, slots: int, budget: int) -> None:
        runs = play(rate, prompt, output, slots, budget)
        seconds = round_up(max(run.end for run in runs.values()))
        clock.reach(seconds)
        for policy, run in runs.items():
            pictures[policy].set_verts(run.bars * [1 / seconds, 1 / slots])
            pictures[policy].set_facecolor(run.colours)
            figures[policy].set_text(
                f"{run.row['tokens_per_second']:.0f} tokens/s · first token after {duration(run.row['mean_ttft'])} on "
                f"average · longest gap {duration(run.row['longest_gap'])}"
            )
            times, waiting = run.queue
            lines[policy].set_data(np.array([*times, seconds]) / seconds, [*waiting, 0])

    def describe(rate: float, prompt: int, output: int, slots: int, budget: int) -> str:
        arrivals = "all at once" if rate == AT_ONCE else f"{rate:g} a second"
        told = []
        for policy, run in play(rate, prompt, output, slots, budget).items():
            told.append(
                f"{POLICY_NAMES[policy]}: {run.row['seconds']:.3g} s, {percent(run.row['utilization'])} of the slots "
                f"at work, longest gap {duration(run.row['longest_gap'])}"
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
class Played:
    """A simulation, ready to be drawn. bars: [bar, corner, (second, slot from below)], one for each phase."""

    row: dict[str, Any]
    end: float
    bars: np.ndarray
    colours: list[str]
    queue: tuple[list[float], list[int]]

    @classmethod
    def of(cls, run: Simulation) -> Played:
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
    """The times at which the number of waiting requests changes, and its value from then on."""
    events = [(result.request.arrival, 1) for result in run.results]
    events += [(result.admitted, -1) for result in run.results]
    events.sort(key=lambda event: (event[0], -event[1]))  # a request admitted at once arrives first
    return [time for time, _ in events], list(itertools.accumulate(change for _, change in events))
