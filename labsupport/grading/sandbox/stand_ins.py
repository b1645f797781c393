"""Modules that are not installed where grading runs, so that importing one does not take a whole cell with it.

A cell that imports `google.colab` or `seaborn` beside what an answer needs works in the student's notebook. Here such
a module is a stand-in, which fails when something of it is used. An import inside of `try` is left alone: its author
says what to do without the module. What `google.colab` offers (a drive, uploads) belongs to the notebook, not to the
answer, and does nothing.

Where a statement at the top level of a cell uses a stand-in (``sns.set_theme()``, ``tool = package.Tool()``), the cell
goes on after it, as it did in the student's notebook (`Forgiving`); so it does after a ``login()``, as there is no
network. What the statement would have defined is missing
too, and fails when an answer uses it.
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
        return _Silent() if self.__name__.startswith(_SILENT) else _Missing(self.__name__, f"{self.__name__}.{name}")


class StandInUsed(ModuleNotFoundError):
    """Something of a module was used that is not there."""

    def __init__(self, module: str, what: str) -> None:
        super().__init__(f"{module} is not installed where this is graded, so {what} cannot be used")
        self.module = module


StandInUsed.__name__ = "ModuleNotFoundError"  # as a student knows it


class _Missing:
    """Something of a module that is not there."""

    def __init__(self, module: str, what: str) -> None:
        self.__dict__["_of"] = (module, what)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise StandInUsed(*self.__dict__["_of"])

    __call__ = __getattr__ = __getitem__ = __iter__ = __enter__ = __setattr__ = __setitem__ = __len__ = __bool__ = _fail
    __float__ = __int__ = __index__ = __neg__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _fail
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = _fail
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __pow__ = __rpow__ = _fail
    __mro_entries__ = _fail
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


def forgive(shell: Any) -> None:
    """Let the cells of an IPython ``shell`` go on after a statement that used a stand-in."""
    shell.user_ns |= {_USED: StandInUsed, _LACKING: _lacking}
    shell.ast_transformers.append(Forgiving())


def _lacking(error: StandInUsed, name: str) -> _Missing:
    """What a statement that ended with ``error`` would have called ``name``."""
    return _Missing(error.module, name)


class Forgiving(ast.NodeTransformer):
    """Statements at the top level, each in a `try` of its own where what the sandbox lacks may end it.

    An expression of which nothing is kept (``plt.style.use("x")``, ``login()``) may also need a file or the network.
    """

    def visit_Module(self, module: ast.Module) -> ast.Module:
        lacking = any(isinstance(each, StandIn) for each in list(sys.modules.values()))
        shown = [isinstance(node, ast.Expr) and node is module.body[-1] for node in module.body]
        module.body = [
            node if last or not (lacking or isinstance(node, ast.Expr)) else self._tried(node)
            for node, last in zip(module.body, shown, strict=True)
        ]
        return module

    def _tried(self, node: ast.stmt) -> ast.stmt:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return node
        caught = f"({_USED}, OSError, EOFError)" if isinstance(node, ast.Expr) else _USED
        lines = [f"{name} = {_LACKING}({_ERROR}, {name!r})" for name in sorted(_stored(node))]
        lines = [] if isinstance(node, ast.Expr) else lines
        source = "\n    ".join([f"try:\n    pass\nexcept {caught} as {_ERROR}:", "pass", *lines])
        (tried,) = ast.parse(source).body
        for each in ast.walk(tried):
            ast.copy_location(each, node)
        tried.body = [node]  # type: ignore[attr-defined]
        return tried


_USED, _LACKING, _ERROR = "_labsupport_used", "_labsupport_lacking", "_labsupport_error"


def _stored(node: ast.stmt) -> set[str]:
    """The names that a statement binds, itself."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}


def _imported(tree: ast.Module) -> set[str]:
    """The modules that are imported outside of any `try`, or again by an `except` that installs them first."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Try):
            waiting += node.handlers
        else:
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
