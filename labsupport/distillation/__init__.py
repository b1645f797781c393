"""Chapter 2, distillation: a small model learns from a large one. Names below are imported when first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
