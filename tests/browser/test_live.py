"""Live in a real JupyterLab and Chromium, with this environment's kernel and a Colab-like one (ipywidgets 7.7)."""

from __future__ import annotations

import statistics

import nbformat
import pytest

from labsupport.widgets import Live, new_figure

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
Live(figure, update, lambda bar: f"Bar {bar} is black.", 
     bar=ipywidgets.IntSlider(value=1, min=0, max=7, description="Which bar"))
"""


@pytest.fixture(scope="module")
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
        for key in ("ArrowRight", "ArrowLeft") * 3:
            assert opened.press(slider, key), "the picture did not change"
        with opened.film(opened.picture_of(slider)) as inked:
            for key in ("ArrowLeft", "ArrowRight") * 2:
                assert opened.press(slider, key)
        assert len(inked) >= 3, f"only {len(inked)} frames were painted"
        assert min(inked) > 0.5 * max(inked), f"blank: {inked}"
    assert opened.errors() == []
    opened.assert_steady()
    with capsys.disabled():
        print(f"\n{lab.kernel}: key to picture {statistics.median(opened.latencies()):.0f} ms (median)")


def test_a_reader_sees_the_stored_picture_before_anything_runs(notebook_page, lab):
    """A notebook that came from elsewhere is not trusted: JupyterLab shows the PNG of a Live whose kernel is gone."""
    figure, axes = new_figure(width=4, height=2)
    axes.plot([0, 1], [0, 1])
    live = Live(figure, lambda n: None, lambda n: "A line that rises.", n=(0, 9))
    bundle, metadata = live._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell("live", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("display_data", bundle, metadata=metadata)]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), lab.folder / "stored.ipynb")
    page = notebook_page.page.context.browser.new_page()
    reader = type(notebook_page)(page, lab)
    reader.open("stored.ipynb")
    box = page.locator(".jp-OutputArea-output img").bounding_box()
    assert (box["width"], box["height"]) == (400, 200)
    assert reader.errors() == []
    page.close()


def test_the_film_sees_a_blank_frame(opened):
    """The check above can fail: here the picture is taken away for a while."""
    picture = opened.page.locator("img.widget-image").first
    picture.scroll_into_view_if_needed()
    with opened.film(picture) as inked:
        picture.evaluate("e => { e.style.visibility = 'hidden'; setTimeout(() => e.style.visibility = '', 150); }")
        opened.page.wait_for_timeout(300)
    assert min(inked) < 0.5 * max(inked)


def test_checkbox_and_buttons_work_by_keyboard(opened):
    assert opened.press(opened.page.locator(".widget-checkbox input"), "Space")
    assert opened.press(opened.page.locator(".widget-toggle-buttons button >> nth=1"), "Space")


def test_keys_held_down_end_at_the_last_value(opened):
    """The front end keeps at most one change in flight, so a burst ends at its last value and skips some between."""
    slider = opened.sliders()[0]
    opened.press(slider, "Home")
    for _ in range(8):
        opened.page.keyboard.press("ArrowRight")
    opened.page.wait_for_selector("[role=status]:has-text('A wave of 9 rad/s')")  # from 1
    assert opened.errors() == []


def test_an_error_is_one_red_line_and_the_picture_stays(opened):
    slider = opened.sliders()[2]
    opened.press(slider, "Home")
    assert opened.press(slider, "ArrowRight")
    assert opened.press(slider, "ArrowRight")  # bar 2
    picture = opened.picture_of(slider)
    good = opened.digest(picture)
    slider.focus()
    opened.page.keyboard.press("ArrowRight")  # bar 3
    opened.page.wait_for_selector("[role=alert]:has-text('ZeroDivisionError: bar three cannot be drawn')")
    assert opened.digest(picture) == good
    assert opened.press(slider, "ArrowRight")  # bar 4 works again, and the red line goes
    opened.page.wait_for_selector("[role=status]:has-text('Bar 4 is black.')")
    assert opened.errors() == []
