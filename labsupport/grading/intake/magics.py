"""A cell's source as Python, as IPython makes it before running it: without this a magic hides the whole cell.

Only text is transformed; nothing runs.
"""

from __future__ import annotations

import re
from functools import lru_cache

_MAX_BYTES = 200_000
_MAGIC = re.compile(r"^\s*[%!?]|\?\s*(#.*)?$|^\s*\w[\w., ]*=\s*[%!]", re.MULTILINE)
_CELL_MAGIC = re.compile(r"\A\s*%%(time|capture|prun)\b[^\n]*\n")  # that run the rest of the cell as Python


@lru_cache(maxsize=4096)
def as_python(source: str) -> str:
    """``source`` with its magics as calls; as it is if it has none, or none that IPython understands."""
    if len(source) > _MAX_BYTES or not _MAGIC.search(source):
        return source
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return TransformerManager().transform_cell(_CELL_MAGIC.sub("\n", source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
