"""The block table: each event shows what its text says."""

from __future__ import annotations

import re

import pytest
from matplotlib.colors import to_hex
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.widgets import Live
from labsupport.widgets import kvcache as widgets
from labsupport.widgets.style import LIGHT_GREY


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


def test_a_shared_block_has_one_neutral_colour_and_a_frame(live):
    """Two colours for two owners left the third without one."""
    live.set(event=11)
    assert "E arrives" in live.text
    left = live.figure.axes[0]
    shared = [text for text in left.texts if "+" in text.get_text()]
    assert {text.get_text() for text in shared} == {"A+C+E", "A+C"}
    frames = [patch for patch in left.patches if patch.get_linewidth() == 2.5 and patch.get_visible()]
    assert len(frames) == len(shared) == 3
    filled = [patch for patch in left.patches if patch.get_fill() and patch.get_width() > 0]
    corners = {frame.get_xy() for frame in frames}
    colours = {to_hex(patch.get_facecolor()).upper() for patch in filled if patch.get_xy() in corners}
    assert colours == {LIGHT_GREY}
