"""Chapter 3's interactive pictures: memory of the cache, time with and without it, blocks, and key-value heads.

Sizes and block tables are computed as the controls move; milliseconds and perplexities come in as tables that a cell of
the notebook has measured.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
