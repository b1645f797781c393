"""Modules that are not installed where grading runs, so that importing one does not take a whole cell with it.

A cell that imports `google.colab` or `seaborn` beside what an answer needs works in the student's notebook. Here such
a module is a stand-in, which fails when something of it is used. An import inside of `try` is left alone: its author
says what to do without the module. What `google.colab` offers (a drive, uploads) belongs to the notebook, not to the
answer, and does nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from types import ModuleType
from typing import Any

_SILENT = ("google.colab",)


class StandIn(ModuleType):
    """A module of which everything can be imported and nothing used."""

    __path__: Any = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Silent() if self.__name__.startswith(_SILENT) else _Missing(self.__name__, name)


class _Missing:
    """Something of a module that is not there."""

    def __init__(self, module: str, name: str) -> None:
        self.__dict__["_of"] = (module, name)

    def _fail(self, *_: Any, **__: Any) -> Any:
        module, name = self.__dict__["_of"]
        raise ModuleNotFoundError(f"{module} is not installed where this is graded, so {module}.{name} cannot be used")

    __call__ = __getattr__ = __getitem__ = __iter__ = __enter__ = __setattr__ = __setitem__ = __len__ = __bool__ = _fail
    __float__ = __int__ = __index__ = __neg__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _fail
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = _fail
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __pow__ = __rpow__ = _fail
    __hash__ = None  # type: ignore[assignment]


class _Silent:
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return None


def stand_in_for_missing(source: str) -> None:
    """Put a stand-in where a cell, whose ``source`` is Python, imports a module that is not installed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for name in sorted(_imported(tree)):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            prefix = ".".join(parts[:length])
            parent = sys.modules.get(prefix.rpartition(".")[0])
            if prefix in sys.modules or not (isinstance(parent, StandIn) or _is_missing(prefix)):
                continue
            sys.modules[prefix] = StandIn(prefix)
            if parent is not None:
                setattr(parent, parts[length - 1], sys.modules[prefix])


def _imported(tree: ast.Module) -> set[str]:
    """The modules that are imported outside of any `try`."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif not isinstance(node, ast.Try):
            waiting += ast.iter_child_nodes(node)
    return found


def _is_missing(name: str) -> bool:
    """Whether a whole package is missing; a wrong name inside of one that is there is the student's mistake."""
    if "." in name and not name.startswith(_SILENT):
        return False
    try:
        return importlib.util.find_spec(name) is None
    except (ImportError, AttributeError, ValueError):
        return name.startswith(_SILENT)
