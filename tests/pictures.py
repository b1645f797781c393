"""What is asked of every picture that follows its controls, whichever chapter it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import ipywidgets
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from labsupport.widgets import Live


def other_values(control: Any) -> list:
    """All other options of a choice, both ends of a slider, the other state of a checkbox."""
    if isinstance(control, ipywidgets.Checkbox):
        return [not control.value]
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    else:
        values = [control.min, control.max]
    return [value for value in values if value != control.value]


def ends(control: Any) -> list:
    """Of a choice only the first and the last option, where each one takes long."""
    values = other_values(control)
    return [values[0], values[-1]] if len(values) > 1 else values


def number(text: str, pattern: str) -> float:
    """The number at {} of a pattern such as "step {};"."""
    found = re.search(re.escape(pattern).replace(r"\{\}", r"([-+.\de]+)"), text)
    assert found, f"{pattern!r} is not in {text!r}"
    return float(found[1])


def assert_every_control_changes_picture_and_text_and_back(live: Live, values=other_values, same: tuple = ()) -> None:
    """``same``: pairs of a control and a value that happen to show what is shown at the start."""
    start, picture, text = live.values, live.png(), live.text
    for control, widget in live.controls.items():
        for value in values(widget):
            live.set(**{control: value})
            if (control, value) not in same:
                assert live.png() != picture, f"{control}={value} does not change the picture"
                assert live.text != text, f"{control}={value} does not change the text"
            live.set(**start)
    assert live.png() == picture and live.text == text


def assert_only_the_first_picture_draws_the_axes(live: Live) -> None:
    """What moves is animated: a move then takes tens of milliseconds, and not hundreds."""
    live.set(**live.values)
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live.figure.canvas, "draw", lambda: drawn.append(1))
        for control, widget in live.controls.items():
            before = live.values[control]
            live.set(**{control: other_values(widget)[0]})
            assert not drawn, f"{control} makes matplotlib draw the whole figure again"
            live.set(**{control: before})


def assert_no_text_is_cut_off_or_written_over_another(live: Live) -> None:
    width, height = live.figure.canvas.get_width_height(physical=True)
    texts = [(text.get_text(), text.get_window_extent()) for text in _drawn_texts(live.figure)]
    assert len(texts) > 10
    for text, box in texts:
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, f"{text!r} is cut off"
    for (first, a), (second, b) in combinations(texts, 2):
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
        assert apart, f"{first!r} and {second!r} overlap"


def _drawn_texts(figure: Figure) -> Iterator[Text]:
    for axes in figure.axes:
        left_title = axes._left_title  # type: ignore[attr-defined]
        texts = [axes.title, left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        legend = axes.get_legend()
        texts += legend.get_texts() if legend else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [text for tick in ticks for text in (tick.label1, tick.label2)]
        yield from (text for text in texts if text.get_visible() and text.get_text())
