"""Scheduler and cache without a model: preemption, and what prefix caching finds again."""

from __future__ import annotations

import pytest

from labsupport.widgets import inference as widgets


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_few_blocks_preempt_many_do_not(prefix_caching):
    few, many = (widgets.play_blocks(n, 1 / 5, prefix_caching, 16, 6, 8) for n in (16, 80))
    assert few.preempted_at and few.computed > few.needed and few.num_steps > many.num_steps
    assert many.preempted_at == [] and many.computed == many.needed == few.needed
    for run, pool in ((few, 16), (many, 80)):
        assert max(run.in_use) <= pool and all(a + b <= pool for a, b in zip(run.in_use, run.cached, strict=True))
        assert max(run.running) <= 6


def test_prefix_caching_finds_blocks_of_the_preempted_again():
    without, cached = (widgets.play_blocks(16, 1 / 5, on, 16, 6, 8) for on in (False, True))
    assert cached.computed - cached.needed < without.computed - without.needed
    assert max(without.cached) == 0 < max(cached.cached)
