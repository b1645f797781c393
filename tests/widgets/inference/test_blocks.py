"""Blocks over time: the text tells what the scheduler did."""

from __future__ import annotations

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
    assert_only_the_first_picture_draws_the_axes,
    ends,
)

from labsupport.widgets import Live
from labsupport.widgets import inference as widgets


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.block_use()


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live, ends)


def test_only_the_first_picture_draws_the_axes(live):
    assert_only_the_first_picture_draws_the_axes(live)


def test_block_use_tells_what_the_scheduler_did(live):
    live.set(num_blocks=14, rate=1 / 2, prefix_caching=False)
    run = widgets.play_blocks(14, 1 / 2, False, 16, 6, 8)
    assert f"{run.num_steps} steps" in live.text and f"{len(run.preempted_at)} preemptions" in live.text
    assert f"{run.computed - run.needed} tokens computed again" in live.text
    assert "one in 2 steps" in live.text
