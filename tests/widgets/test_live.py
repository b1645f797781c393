"""Live without a browser: what is drawn, said, sent, and how errors show. (tests/browser has the rest.)"""

from __future__ import annotations

import base64
from io import BytesIO

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from labsupport.widgets import Live, label, legend, new_figure, show
from labsupport.widgets.style import CYCLE, percent, plain_ticks


def waves(animated: bool = True) -> Live:
    figure, axes = new_figure(width=4, height=2)
    x = np.linspace(0, 6, 50)
    (line,) = axes.plot(x, np.sin(x), animated=animated)
    axes.set_ylim(-2.5, 2.5)
    label(axes, "A wave", "time [s]", "height [m]")

    def update(frequency: int, amplitude: float, absolute: bool) -> None:
        if amplitude > 1.9:
            raise ValueError("too high,\nreally")
        y = amplitude * np.sin(frequency * x)
        line.set_ydata(abs(y) if absolute else y)

    def describe(frequency: int, amplitude: float, absolute: bool) -> str:
        return f"A wave of {frequency} rad/s & {amplitude:.1f} m."

    return Live(figure, update, describe, frequency=(1, 9), amplitude=(0.0, 2.0, 0.1), absolute=False)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)))


def test_png_is_opaque_at_twice_the_size_shown():
    live = waves()
    picture = Image.open(BytesIO(live.png()))
    assert picture.mode == "RGB" and picture.size == (800, 400)
    assert (live.image.width, live.image.height) == ("400", "200")
    assert pixels(live.png())[0, 0].tolist() == [255, 255, 255]


def test_picture_and_text_follow_the_controls():
    live = waves()
    before = live.png()
    live.controls["frequency"].value = 7
    assert live.png() != before and live.text == "A wave of 7 rad/s & 1.0 m."
    assert "A wave of 7 rad/s &amp; 1.0 m." in live.caption.value and "aria-live" in live.caption.value
    live.set(frequency=5)
    assert live.png() == before  # the same values give the same picture, to the byte


@pytest.mark.parametrize("move", [{"frequency": 8}, {"absolute": True}, {"frequency": 2, "amplitude": 0.3}])
def test_blitting_changes_nothing_in_the_picture(move):
    blitted, drawn = waves(animated=True), waves(animated=False)
    for live in (blitted, drawn):
        live.set(frequency=3)
        live.set(**move)
    assert np.array_equal(pixels(blitted.png()), pixels(drawn.png()))


def test_a_change_of_axes_is_seen_although_artists_are_blitted():
    pictures = []
    for animated in (True, False):
        figure, axes = new_figure(width=3, height=2)
        axes.plot([0, 1], [0, 1], animated=animated)
        live = Live(figure, lambda top, axes=axes: axes.set_ylim(-top, 2 * top), lambda top: f"up to {top}", top=(1, 5))
        live.set(top=5)
        pictures.append(pixels(live.png()))
    assert np.array_equal(*pictures)


def test_set_moves_all_controls_and_draws_once():
    figure, _axes = new_figure(width=3, height=2)
    seen = []
    live = Live(figure, lambda a, b: seen.append((a, b)), lambda a, b: "", a=(0, 10), b=(0, 10))
    assert seen == [(5, 5)]
    live.set(a=1, b=2)
    assert seen == [(5, 5), (1, 2)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 1}, "no control is called 'speed'; there are frequency, amplitude, absolute"),
        ({"frequency": 12}, "frequency cannot be 12; the control made it 9"),
        ({"frequency": "fast"}, "frequency cannot be 'fast'"),
    ],
)
def test_set_refuses_what_a_control_cannot_take(values, message):
    live = waves()
    with pytest.raises(ValueError, match=message):
        live.set(**values)
    assert live.values == {"frequency": 5, "amplitude": 1.0, "absolute": False}


def test_error_in_update_is_one_red_line_and_the_picture_stays():
    live = waves()
    good = live.png()
    with pytest.raises(ValueError, match="too high"):
        live.controls["amplitude"].value = 2.0
    assert live.png() == good
    assert 'role="alert"' in live.caption.value and "ValueError: too high, really" in live.caption.value
    live.controls["amplitude"].value = 1.5
    assert live.png() != good and 'role="status"' in live.caption.value


def test_error_at_the_start_is_raised():
    figure, _ = new_figure()
    with pytest.raises(ZeroDivisionError):
        Live(figure, lambda n: 1 / 0, lambda n: "", n=(0, 1))


def test_bundle_has_view_png_and_text_and_no_html():
    live = waves()
    bundle, metadata = live._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == live.widget.model_id
    assert bundle["text/plain"] == live.text
    assert np.array_equal(pixels(base64.b64decode(bundle["image/png"])), pixels(live.png()))
    assert metadata == {"image/png": {"width": 400, "height": 200}}


@pytest.fixture
def displayed(monkeypatch):
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **options: calls.append((args, options)))
    return calls


def test_ipython_display_sends_the_same_bundle(displayed):
    live = waves()
    live._ipython_display_()
    ((bundle,), options) = displayed[0]
    assert (bundle, options["metadata"]) == live._repr_mimebundle_() and options["raw"] is True


def test_show_gives_a_still_picture_with_its_text(displayed):
    figure, axes = new_figure(width=3, height=2)
    axes.plot([0, 1])
    show(figure, "A line that rises.")
    ((bundle,), options) = displayed[0]
    assert set(bundle) == {"image/png", "text/plain"} and bundle["text/plain"] == "A line that rises."
    assert pixels(bundle["image/png"]).shape == (400, 600, 3)
    assert options["metadata"]["image/png"] == {"width": 300, "height": 200}


def test_a_pyplot_figure_is_shown_once():
    figure = plt.figure()
    Live(figure, lambda n: None, lambda n: "", n=(0, 1))
    assert not plt.fignum_exists(figure.number)


def test_axes_stay_in_place_whatever_the_labels():
    figure, axes = new_figure(width=4, height=2)
    live = Live(figure, lambda top: axes.set_ylim(0, 10**top), lambda top: "", top=(0, 8))
    before = axes.get_position().bounds
    live.set(top=8)
    live.figure.draw_without_rendering()
    assert axes.get_position().bounds == before


@pytest.mark.parametrize(
    ("spec", "kind", "value"),
    [
        ((2, 8), ipywidgets.IntSlider, 5),
        ((0, 100, 25), ipywidgets.IntSlider, 50),
        ((0.0, 1.0, 0.1), ipywidgets.FloatSlider, 0.5),
        (True, ipywidgets.Checkbox, True),
        (["a", "b"], ipywidgets.ToggleButtons, "a"),
        ({"one": 1, "two": 2}, ipywidgets.ToggleButtons, 1),
        (list(range(6)), ipywidgets.SelectionSlider, 0),
        (ipywidgets.IntSlider(value=3, min=0, max=9), ipywidgets.IntSlider, 3),
    ],
)
def test_shorthands(spec, kind, value):
    figure, _ = new_figure(width=2, height=1)
    live = Live(figure, lambda group_size: None, lambda group_size: "", group_size=spec)
    control = live.controls["group_size"]
    assert isinstance(control, kind) and control.value == value
    assert control.description == "Group size" and control.style.description_width == "initial"


@pytest.mark.parametrize("spec", [(1,), (5, 2), (1, 2, 3, 4), [], {}, "text", None, ("a", "b")])
def test_a_control_that_is_none_is_refused(spec):
    figure, _ = new_figure(width=2, height=1)
    with pytest.raises(ValueError):
        Live(figure, lambda n: None, lambda n: "", n=spec)


def test_describe_becomes_one_line_without_markup():
    figure, _ = new_figure(width=2, height=1)
    live = Live(figure, lambda n: None, lambda n: "a\n  <b>\n", n=(0, 2))
    assert live.text == "a <b>" and "&lt;b&gt;" in live.caption.value and "<b>" not in live.caption.value


def test_house_style():
    figure, axes = new_figure("AB;CB")
    assert isinstance(figure, Figure) and set(axes) == {"A", "B", "C"}
    (line,) = axes["A"].plot([0, 1], label="x")
    assert line.get_color() == CYCLE[0] and not axes["A"].spines["top"].get_visible()
    assert not legend(axes["A"]).get_frame_on()
    plain_ticks(axes["A"].yaxis, [0.1, 0.2], " %")
    assert [text.get_text() for text in axes["A"].get_yticklabels()] == ["0.1 %", "0.2 %"]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50 %"),
        (0.0123, "1.2 %"),
        (0.00123, "0.12 %"),
        (1.5e-5, "0.0015 %"),
        (12.3, "1230 %"),
    ],
)
def test_percent_has_two_significant_digits(share, text):
    assert percent(share) == text
