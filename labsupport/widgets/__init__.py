"""Pictures that follow their controls. `Live` makes one; one module a chapter holds the ready-made ones.

>>> from labsupport.widgets import quantization
>>> quantization.quantization_grid(weight)  # doctest: +SKIP
"""

from labsupport.widgets.live import Live
from labsupport.widgets.style import label, legend, new_figure, show

__all__ = ["Live", "label", "legend", "new_figure", "show"]
