"""Chapter 4, an inference engine: one idea a file. Names below are imported when first used: this import is light."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
