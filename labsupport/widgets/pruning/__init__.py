"""Chapter 2's interactive pictures. Each function takes real weights, logits or measured tables and returns a `Live`.

What takes seconds to measure (perplexity, milliseconds) comes in as a table that a cell of the notebook has measured;
what takes milliseconds (masks, soft targets) is computed as the controls move.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
