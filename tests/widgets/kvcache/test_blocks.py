"""The block table: each event shows what its text says."""

from __future__ import annotations

import re

import pytest
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.widgets import Live
from labsupport.widgets import kvcache as widgets


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.block_table()


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_the_story_of_the_blocks_shows_what_it_says(live):
    texts = []
    for event in range(live.controls["event"].max + 1):
        live.set(event=event)
        texts.append(live.text)
        used, reserved = map(int, re.findall(r"(\d+) of (\d+) reserved", live.text)[0])
        assert used <= reserved <= 24 * 4
    story = " ".join(texts)
    for what in ("forks from", "copied a shared block first", "found in the cache", "must wait", "is done"):
        assert what in story
