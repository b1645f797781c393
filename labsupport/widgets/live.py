"""A picture that follows its controls: `Live(fig, update, describe, **controls)`.

One matplotlib figure is kept; when a control moves, `update` changes its artists, the figure is redrawn and sent as
one PNG through a core `ipywidgets.Image`. The picture in the page is replaced only when the new one is complete, so
nothing flickers, and no extension has to be enabled: ipywidgets 7.7 (Colab) and 8 both work.

Where only artists made with `animated=True` have changed, the rest of the figure (axes, ticks, labels) is restored
from a copy instead of being drawn again ("blitting"). Matplotlib knows which artists are stale, so nothing has to be
switched on.
"""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Callable
from typing import Any

import ipywidgets
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labsupport.widgets.style import canvas_of, display_size, encode_png

ERROR_COLOUR = "#B00020"


class Live:
    """A figure that its controls redraw, with a one-line description of what it shows.

    Args:
        fig: the figure; `update` changes its artists. It is taken out of pyplot, so that it is shown once.
        update: called as `update(**values)` with the value of every control; draws; its return value is ignored.
        describe: called as `describe(**values)` after `update`; says in one line, with numbers, what the picture shows.
            Shown below the picture, read by screen readers, and the `text/plain` of the output.
        controls: by name, an ipywidgets widget, or `(low, high)` or `(low, high, step)` for a slider that starts in
            the middle, a list or dict for a choice, a bool for a checkbox. Avoid Dropdown and RadioButtons: JupyterLab
            intercepts their arrow keys.

    An exception in `update` or `describe` appears as one red line below the last picture; it is raised again, so that a
    test, or the log of the front end, has the traceback.
    """

    def __init__(
        self, fig: Figure, update: Callable[..., Any], describe: Callable[..., str], /, **controls: Any
    ) -> None:
        self.figure = _without_pyplot(fig)
        self.controls = {name: _as_control(name, spec) for name, spec in controls.items()}
        self._update, self._describe = update, describe
        self._background: Any = None
        self._paused = False
        self.text = ""

        self.image = ipywidgets.Image(format="png")
        self.caption = ipywidgets.HTML()
        # The first picture fixes the layout; from then on the axes stay where they are.
        self._draw(first=True)
        width, height = display_size(self.figure)
        self.image.width, self.image.height = str(width), str(height)
        self.image.layout = ipywidgets.Layout(max_width="100%", height="auto")
        # No tooltip on the picture, though it would help: the front end of ipywidgets 8 fails on an Image with one.
        self.caption.layout = ipywidgets.Layout(max_width=f"{width}px")

        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", max_width=f"{width}px", overflow="visible")
        bar = ipywidgets.Box(list(self.controls.values()), layout=row)
        self.widget = ipywidgets.VBox([bar, self.image, self.caption])
        for control in self.controls.values():
            control.observe(self._on_change, names="value")

    @property
    def values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def png(self) -> bytes:
        """The current picture, as PNG bytes."""
        return bytes(self.image.value)

    def set(self, **values: Any) -> None:
        """Move controls from code, with one redraw at the end.

        Raises:
            ValueError: there is no such control, or it cannot take the value.
        """
        unknown = [name for name in values if name not in self.controls]
        if unknown:
            raise ValueError(f"no control is called {unknown[0]!r}; there are {', '.join(self.controls)}")
        self._paused = True
        try:
            for name, value in values.items():
                _move(name, self.controls[name], value)
        finally:
            self._paused = False
            self._draw()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Widget view where a kernel runs, PNG for a page without one, text for everything else.

        No text/html: converters would prefer it to the picture.
        """
        width, height = display_size(self.figure)
        small = encode_png(canvas_of(self.figure), compress_level=9)  # this one is stored in the notebook
        bundle = {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.widget.model_id,
            },
            "image/png": base64.b64encode(small).decode("ascii"),
            "text/plain": self.text,
        }
        return bundle, {"image/png": {"width": width, "height": height}}

    def _ipython_display_(self) -> None:
        from IPython.display import display

        bundle, metadata = self._repr_mimebundle_()
        display(bundle, metadata=metadata, raw=True)

    def _on_change(self, _: Any) -> None:
        # One change is in flight at a time: the front end holds later ones back, keeping only the newest, until the
        # kernel is idle again. Drawing at once is therefore both the simplest and the fastest.
        if not self._paused:
            self._draw()

    def _draw(self, first: bool = False) -> None:
        try:
            self._update(**self.values)
            text = self._describe(**self.values)
            if first:
                self.figure.draw_without_rendering()
                self.figure.set_layout_engine("none")
            self._render()
            png = encode_png(canvas_of(self.figure))
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())
            self.caption.value = _line(message, role="alert", colour=ERROR_COLOUR)
            raise
        self.text = " ".join(text.split())
        self.image.value = png
        self.caption.value = _line(self.text, role="status")

    def _render(self) -> None:
        canvas, moving = canvas_of(self.figure), _animated(self.figure)
        if not moving:
            canvas.draw()
            return
        if self._background is None or self.figure.stale:
            canvas.draw()  # without the animated artists
            self._background = canvas.copy_from_bbox(self.figure.bbox)
        else:
            canvas.restore_region(self._background)
        for artist in moving:
            artist.draw(canvas.get_renderer())


def _without_pyplot(figure: Figure) -> Figure:
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)
    FigureCanvasAgg(figure)  # whatever its backend was, from now on it is only drawn here
    figure.patch.set_facecolor("white")
    figure.patch.set_alpha(1.0)
    return figure


def _animated(figure: Figure) -> list[Artist]:
    artists = [a for axes in figure.axes for a in axes.get_children() if a.get_animated() and a.get_visible()]
    return sorted(artists, key=lambda a: a.get_zorder())


def _move(name: str, control: Any, value: Any) -> None:
    before = control.value
    try:
        control.value = value
    except Exception as error:
        raise ValueError(f"{name} cannot be {value!r}: {error}") from error
    if control.value != value:  # a slider silently clips a value to its range
        given, control.value = control.value, before
        raise ValueError(f"{name} cannot be {value!r}; the control made it {given!r}")


def _as_control(name: str, spec: Any) -> ipywidgets.Widget:
    label = name.replace("_", " ").capitalize()
    if isinstance(spec, ipywidgets.Widget):
        control = spec
    elif isinstance(spec, bool):
        control = ipywidgets.Checkbox(value=spec, indent=False)
    elif isinstance(spec, tuple) and len(spec) in (2, 3) and all(isinstance(x, (int, float)) for x in spec):
        control = _slider(*spec)
    elif isinstance(spec, (list, dict)) and spec:
        control = _choice(spec)
    else:
        raise ValueError(
            f"{name} must be a widget, (low, high), (low, high, step), a filled list or dict, or a bool; got {spec!r}"
        )
    if not control.description:
        control.description = label
    control.style.description_width = "initial"
    control.layout.width = control.layout.width or "max-content"
    control.layout.margin = control.layout.margin or "2px 24px 2px 0"
    if hasattr(control, "readout"):  # a slider gets the width it needs, so that its label is never cut off
        control.layout.min_width = control.layout.min_width or "340px"
    return control


def _slider(low: float, high: float, step: float | None = None) -> ipywidgets.Widget:
    if low >= high:
        raise ValueError(f"a slider needs low < high, got ({low}, {high})")
    if all(isinstance(x, int) for x in (low, high, 1 if step is None else step)):
        step = step or 1
        return ipywidgets.IntSlider(value=low + (high - low) // (2 * step) * step, min=low, max=high, step=step)
    step = step or (high - low) / 50
    middle = low + round((high - low) / (2 * step)) * step
    return ipywidgets.FloatSlider(value=middle, min=low, max=high, step=step)


def _choice(options: list | dict) -> ipywidgets.Widget:
    """Buttons for a few options, a slider for many: the two that work with the keyboard in JupyterLab."""
    if len(options) > 4:
        return ipywidgets.SelectionSlider(options=options)
    return ipywidgets.ToggleButtons(options=options, style={"button_width": "auto"})


def _line(text: str, role: str, colour: str = "#333333") -> str:
    """One line of HTML that screen readers announce when it changes."""
    live = "assertive" if role == "alert" else "polite"
    style = f"color:{colour};font-size:13px;line-height:1.4"
    text = html.escape(text).replace(" %", "&nbsp;%")
    return f'<div role="{role}" aria-live="{live}" style="{style}">{text}</div>'
