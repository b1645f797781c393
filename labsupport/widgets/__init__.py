"""Pictures that follow their controls. `Live` makes one; a folder for each chapter holds the ready-made ones.

>>> from labsupport.widgets import quantization
>>> quantization.quantization_grid(weight)  # doctest: +SKIP
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
