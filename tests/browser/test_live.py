"""Live in a real JupyterLab and Chromium, with this environment's kernel and a Colab-like one (ipywidgets 7.7)."""

from __future__ import annotations

import statistics

import nbformat
import pytest

pytestmark = pytest.mark.browser

FIRST = """
import ipywidgets, numpy as np
from labsupport.widgets import Live, label, new_figure
print("ipywidgets", ipywidgets.__version__)
x = np.linspace(0, 6, 300)
figure, axes = new_figure()
line, = axes.plot(x, np.sin(x), animated=True)
axes.set_ylim(-2.2, 2.2)
label(axes, "A wave", "time [s]", "height [m]")
moves = []
def update(frequency, amplitude, absolute, colour):
    moves.append(frequency)
    y = amplitude * np.sin(frequency * x)
    line.set_ydata(abs(y) if absolute else y)
    line.set_color(colour)
Live(figure, update, lambda frequency, amplitude, **_: f"A wave of {frequency} rad/s, {amplitude:.1f} m high.",
     frequency=(1, 20), amplitude=(0.1, 2.0, 0.1), absolute=False, colour=["tab:blue", "black"])
"""
SECOND = """
figure, axes = new_figure(height=2.4)
bars = axes.bar(range(8), range(8))
def update(bar):
    if bar == 3:
        raise ZeroDivisionError("bar three cannot be drawn")
    for index, rectangle in enumerate(bars):
        rectangle.set_color("black" if index == bar else "tab:blue")
Live(figure, update, lambda bar: f"Bar {bar} is black.", bar=ipywidgets.IntSlider(value=1, min=0, max=7, description="Which bar"))
"""


@pytest.fixture
def opened(notebook_page, lab):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(FIRST), nbformat.v4.new_code_cell(SECOND)]
    nbformat.write(notebook, lab.folder / f"live-{lab.kernel}.ipynb")
    notebook_page.open(f"live-{lab.kernel}.ipynb")
    notebook_page.run_all()
    notebook_page.page.wait_for_selector("img.widget-image >> nth=1")
    return notebook_page


def test_the_kernel_is_the_one_meant(opened, lab):
    printed = opened.page.locator(".jp-OutputArea-output pre").first.inner_text()
    assert printed.startswith("ipywidgets 7.7." if lab.kernel == "colab" else "ipywidgets 8.")


def test_sliders_move_pictures_without_a_blank_frame(opened, lab, capsys):
    assert opened.errors() == []
    assert opened.watch() == 2
    opened.screenshot(f"live-{lab.kernel}")
    sliders = opened.sliders()
    assert len(sliders) == 3
    for slider in sliders:
        assert opened.nudge(slider), "the picture did not change"
    for _ in range(8):
        assert opened.press(sliders[0], "ArrowRight")
    assert opened.errors() == []
    assert_never_blank(opened)
    with capsys.disabled():
        print(f"\n{lab.kernel}: key to picture {statistics.median(opened.latencies()):.0f} ms (median)")


def test_checkbox_and_dropdown_work_by_keyboard(opened):
    assert opened.press(opened.page.locator(".widget-checkbox input"), "Space")
    assert opened.press(opened.page.locator(".widget-dropdown select"), "ArrowDown")


def test_keys_held_down_end_at_the_last_value(opened):
    """The front end keeps at most one change in flight, so a burst ends at its last value and skips some between."""
    slider = opened.sliders()[0]
    slider.focus()
    start = int(float(slider.get_attribute("aria-valuenow")))
    for _ in range(8):
        opened.page.keyboard.press("ArrowRight")
    opened.page.wait_for_selector(f"[role=status]:has-text('A wave of {start + 8} rad/s')")
    assert opened.errors() == []


def test_an_error_is_one_red_line_and_the_picture_stays(opened):
    slider, before = opened.sliders()[2], opened.digests()
    assert opened.press(slider, "ArrowRight")  # bar 2
    good = opened.digests()
    assert good != before
    slider.focus()
    opened.page.keyboard.press("ArrowRight")  # bar 3
    opened.page.wait_for_selector("[role=alert]:has-text('ZeroDivisionError: bar three cannot be drawn')")
    assert opened.digests() == good
    assert opened.press(slider, "ArrowRight")  # bar 4 works again, and the red line goes
    opened.page.wait_for_selector("[role=status]:has-text('Bar 4 is black.')")
    assert opened.errors() == []


def assert_never_blank(opened):
    for index, frames in opened.frames().items():
        assert len(frames) > 10, f"only {len(frames)} frames of picture {index} were seen"
        widths = {width for width, _, _ in frames}
        heights = [height for _, height, _ in frames]
        assert widths and 0 not in widths, f"picture {index} was blank in {sum(w == 0 for w, _, _ in frames)} frames"
        assert min(heights) > 0.98 * max(heights), f"picture {index} collapsed from {max(heights)} to {min(heights)} px"
