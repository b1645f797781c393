"""Slots over time: the numbers in the text are those of the simulation."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_only_the_first_picture_draws_the_axes,
    ends,
)

from labsupport.inference.arrivals import poisson_requests
from labsupport.inference.simulate import affine_cost, simulate
from labsupport.widgets import Live
from labsupport.widgets import inference as widgets
from labsupport.widgets.inference.timeline import POLICY_NAMES, Played


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.scheduler_timeline(num_requests=12)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live, ends)


def test_only_the_first_picture_draws_the_axes(live):
    assert_only_the_first_picture_draws_the_axes(live)


def test_the_timeline_tells_what_the_simulation_gives(live):
    live.set(rate=8, prompt=256, output=16, slots=2, budget=32)
    requests = poisson_requests(8, 12, (64, 448), (4, 28), seed=3)
    cost = affine_cost(0.02, 0.0005, 0.001)
    for policy, name in POLICY_NAMES.items():
        row = simulate(requests, policy, 2, cost, 32 if policy == "chunked" else None).summary()
        assert f"{name}: {row['seconds']:.3g} s" in live.text
    gaps = [float(gap) for gap in re.findall(r"longest gap (\d+) ms", live.text)]
    assert gaps[2] <= 20 + 32 * 0.5 + 2 * 1 < gaps[1], "chunks bound the gap by the budget"


def test_bars_of_a_slot_do_not_overlap_and_add_up_to_the_steps():
    run = simulate(poisson_requests(4, 10, seed=1), "static", 3, affine_cost(0.02, 0.0005, 0.001))
    played = Played.of(run)
    for slot in range(3):
        low = 3 - slot - 0.92
        spans = sorted((bar[0, 0], bar[1, 0]) for bar in played.bars if bar[0, 1] == pytest.approx(low))
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(spans))
        busy = sum(step.seconds for step in run.steps if step.slots[slot][0] >= 0)
        assert sum(end - start for start, end in spans) == pytest.approx(busy)
    assert played.queue[1][-1] == 0 and min(played.queue[1]) >= 0 and max(played.queue[1]) <= 10
