"""The serving stack as a drawing: who sends to whom."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from labsupport.widgets.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, show

TOLD = (
    "Clients send to nginx, which balances two API servers. These put requests into a Redis stream, from which two "
    "engine workers take them; replies go back the same way. Prometheus asks API servers and workers for their metrics."
)


def stack_picture() -> None:
    """Show it."""
    figure, axis = new_figure(height=3.3)
    axis.set(xlim=(0, 100), ylim=(0, 40))
    axis.axis("off")
    axis.text(2, 25, "clients", fontsize=10, ha="center", va="center", rotation=90)
    _box(axis, 9, 21, "nginx", "load balancer", GREEN)
    for y, number in ((30, 1), (12, 2)):
        _box(axis, 33, y, f"API server {number}", "HTTP, tokens, limits", BLUE)
        _box(axis, 83, y, f"worker {number}", "engine, KV cache", VERMILION)
    _box(axis, 58, 21, "Redis stream", "queue and replies", ORANGE)
    _box(axis, 58, 1, "Prometheus", "asks everybody", GREY)
    _arrow(axis, (4, 25), (8.5, 25))
    for y in (34, 16):
        _arrow(axis, (24.5, 25), (32.5, y))
        _arrow(axis, (48.5, y), (57.5, 25), "<|-|>")
        _arrow(axis, (73.5, 25), (82.5, y), "<|-|>")
    _arrow(axis, (57.5, 5), (40, 11.5), line=":")
    _arrow(axis, (73.5, 5), (90, 11.5), line=":")
    show(figure, TOLD)


def _box(axis: Axes, x: float, y: float, title: str, note: str, colour: str, width: float = 15) -> None:
    shape = FancyBboxPatch(
        (x, y), width, 8, boxstyle="round,pad=0.4", facecolor="white", edgecolor=colour, linewidth=1.8
    )
    axis.add_patch(shape)
    axis.text(x + width / 2, y + 5.4, title, ha="center", va="center", fontsize=10, weight="bold")
    axis.text(x + width / 2, y + 2.1, note, ha="center", va="center", fontsize=8)


def _arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], style: str = "-|>", line: str = "-"
) -> None:
    look = {"arrowstyle": style, "color": GREY, "linewidth": 1.5, "linestyle": line, "shrinkA": 2, "shrinkB": 2}
    axis.annotate("", end, start, arrowprops=look)
