"""The house style of every figure in the course: colours, sizes, and how a figure becomes a picture.

Colours are those of Okabe and Ito (2008), which people with any common kind of colour blindness can tell apart; a line
still gets a style or marker of its own, because prints and projectors lose colour.

Figures are made without pyplot: it would keep them alive, and a front end would show them a second time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from PIL import Image

BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#767676"  # for what is only there for comparison; contrast 4.5:1 against white, so text may be grey too
LIGHT_GREY = "#D9D9D9"

MARKERS = "osD^vP"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)

# From white to one dark hue for magnitudes; two hues that meet in white for signed values.
SEQUENTIAL = LinearSegmentedColormap.from_list("labsupport_sequential", ["#FFFFFF", SKY_BLUE, BLUE, "#00263D"])
DIVERGING = LinearSegmentedColormap.from_list("labsupport_diverging", [BLUE, "#FFFFFF", VERMILION])

DPI = 200  # drawn at 200 dots per inch and shown at half size: sharp on every screen
STYLE: Any = {
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.prop_cycle": cycler(color=CYCLE),
    "lines.linewidth": 1.8,
    "axes.formatter.useoffset": False,
}


def new_figure(
    nrows: int | str = 1, ncols: int = 1, *, width: float = 8.0, height: float = 3.2, **subplots: Any
) -> tuple[Figure, Any]:
    """A figure in the house style, and its axes as `Figure.subplots` returns them (one, a row, or a grid).

    `nrows` may be a mosaic such as "AB;CB": then the axes come as a dict by letter. `width` and `height` are in units
    of 100 screen pixels. Other keywords go to matplotlib (`width_ratios=[2, 1]`, `sharey=True`). Give the figure to
    `Live`, or show it once with `show`.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        if isinstance(nrows, str):
            axes: Any = figure.subplot_mosaic(nrows, **subplots)
        else:
            axes = figure.subplots(nrows, ncols, **subplots)
    return figure, axes


def label(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title and axis labels in one call; an axis label names its unit in brackets."""
    with rc_context(STYLE):
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)


def legend(axes: Axes, **options: Any) -> Any:
    """A legend in the house style: matplotlib reads the style when the legend is made, not when the axes are."""
    with rc_context(STYLE):
        return axes.legend(**options)


def colorbar(figure: Figure, picture: Any, axes: Any, text: str, ticks: Sequence[float] | None = None) -> None:
    """A colour bar that is not animated, even if the picture it explains is."""
    with rc_context(STYLE):
        bar = figure.colorbar(picture, ax=axes, pad=0.015, aspect=35, shrink=0.95)
        bar.set_label(text)
    plain_ticks(bar.ax.yaxis, ticks)
    if bar.solids is not None:
        bar.solids.set_animated(False)


def percent(share: float) -> str:
    """A share as a percentage with two significant digits: 0.0123 is "1.2 %"."""
    if share == 0:
        return "0 %"
    digits = 1 - math.floor(math.log10(abs(share) * 100))
    return f"{share * 100:.{min(max(digits, 0), 4)}f} %"


def duration(seconds: float) -> str:
    """A time with its unit: "250 ms", "1.25 s"."""
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def round_ticks(low: float, high: float, digits: Sequence[int] = (1, 2, 5)) -> list[float]:
    """The `digits` times powers of ten from `low` to `high`: ticks of a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]


def plain_ticks(axis: Axis, ticks: Sequence[float] | None = None, unit: str = "") -> None:
    """Ticks as plain numbers ("0.2", not 2 × 10⁻¹) followed by `unit`, at `ticks` if given."""
    if ticks is not None:
        axis.set_ticks(ticks)
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}".replace("-", "−")))
    axis.set_minor_formatter(NullFormatter())


def encode_png(canvas: FigureCanvasAgg, compress_level: int = 1) -> bytes:
    """The canvas as an opaque PNG. Level 1 is several times faster than the default, for a little larger file."""
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", compress_level=compress_level, dpi=(DPI, DPI))
    return buffer.getvalue()


def canvas_of(figure: Figure) -> FigureCanvasAgg:
    """The figure's canvas, replaced by an Agg canvas if it is of another kind."""
    return figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)


def display_size(figure: Figure) -> tuple[int, int]:
    """(width, height) in screen pixels: half the number of pixels drawn."""
    width, height = figure.canvas.get_width_height(physical=True)
    return width // 2, height // 2


def show(figure: Figure, text: str) -> None:
    """Show a figure that has no controls, at half size, with `text` for readers who cannot see it."""
    from IPython.display import display

    canvas = canvas_of(figure)
    canvas.draw()
    width, height = display_size(figure)
    bundle = {"image/png": encode_png(canvas, compress_level=9), "text/plain": text}
    display(bundle, metadata={"image/png": {"width": width, "height": height}}, raw=True)
