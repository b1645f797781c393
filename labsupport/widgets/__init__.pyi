from .live import Live
from .prediction import compare, guess_line, predict
from .style import label, legend, new_figure, show

__all__ = [
    "Live",
    "compare",
    "guess_line",
    "label",
    "legend",
    "new_figure",
    "predict",
    "show",
]
