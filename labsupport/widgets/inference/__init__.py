"""Chapter 4's interactive pictures, first half: slots and blocks over time, FP8's grid beside INT8's, the roofline."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
