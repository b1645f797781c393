from .live import Live
from .style import label, legend, new_figure, show

__all__ = [
    "Live",
    "label",
    "legend",
    "new_figure",
    "show",
]
