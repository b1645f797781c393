"""The block table of a small paged cache, event by event."""

from __future__ import annotations

import ipywidgets
from matplotlib.patches import Rectangle

from labsupport.widgets.kvcache.block_history import block_history
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
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
    new_figure,
    percent,
)


def block_table(num_blocks: int = 24, block_size: int = 4, max_length: int = 24) -> Live:
    """A small paged cache at work, event by event, beside one that reserves `max_length` slots for each sequence."""
    history = block_history(num_blocks, block_size, max_length)
    slots = num_blocks * block_size
    rooms = slots // max_length
    columns = 6
    names = sorted({name for shot in history for owners in shot.owners.values() for name in owners})
    colours = dict(zip(names, (BLUE, ORANGE, GREEN, PURPLE, SKY_BLUE, YELLOW, VERMILION), strict=False))

    figure, (left, right) = new_figure(1, 2, height=3.9, width_ratios=[1.1, 1])
    label(left, f"Paged: {num_blocks} blocks of {block_size} tokens", "grey in a black frame: shared, stored once")
    label(right, f"Contiguous: {max_length} slots for each sequence", "slot", "")
    rows = -(-num_blocks // columns)
    left.set(xlim=(-0.05, columns), ylim=(rows, -0.05), xticks=[], yticks=[])
    right.set(xlim=(0, max_length), ylim=(rooms + 0.2, -0.2), yticks=[])
    for axis in (left, right):
        axis.spines[:].set_visible(False)
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    cells, frames, texts = [], [], []
    for block in range(num_blocks):
        x, y = block % columns, block // columns
        left.add_patch(Rectangle((x, y), 0.92, 0.88, fill=False, edgecolor=LIGHT_GREY))
        cells.append(left.add_patch(Rectangle((x, y), 0, 0.88, animated=True)))
        frames.append(left.add_patch(Rectangle((x, y), 0.92, 0.88, fill=False, lw=2.5, animated=True)))
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
        for block, (cell, frame, text) in enumerate(zip(cells, frames, texts, strict=True)):
            owners = shot.owners.get(block, [])
            cell.set_width(0.92 * shot.filled.get(block, 0) / block_size)
            cell.set_facecolor(LIGHT_GREY if len(owners) > 1 else colours.get("".join(owners), "none"))
            frame.set_visible(len(owners) > 1)
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
