"""How large language models are made smaller and faster: one algorithm a file, each of them real.

    labsupport.lm              the language model that every chapter compresses and serves
    labsupport.quantization    chapter 1

Importing this package is light. A subpackage, and torch with it, is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType

__version__ = "0.1.0"

COURSE_URL = "https://github.com/labsupport/labsupport"  # the one place: a test holds all other mentions to it


def __getattr__(name: str) -> ModuleType:
    """`labsupport.lm` works after `import labsupport`, at the price of an import when it is first asked for."""
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(module.name for module in iter_modules(__path__))})
