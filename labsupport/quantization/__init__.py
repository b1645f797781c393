"""Chapter 1, quantization: one algorithm a file. Names below are imported when first used, so this import is light."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
