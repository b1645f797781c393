"""What a cell's source says about an answer, read without running it: in a notebook's history, or in a submission.

Sources are untrusted: one longer than `MAX_BYTES` is not parsed, and Python's parser itself gives up on deep nesting
(RecursionError or MemoryError).
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence

MAX_BYTES = 200_000
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # ValueError: a null byte

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_ONLY_IN_NOTEBOOKS = re.compile(r"^\s*(?:[%!?]|[\w.]+\?\??\s*$)", re.MULTILINE)  # magics, shell commands, help


def syntax_error(source: str) -> str | None:
    """Where and why Python cannot read the source: "line 3, `return (x`: '(' was never closed". None if it can.

    None also where it is not known: the source is too long, or holds what only IPython understands.
    """
    if len(source) > MAX_BYTES or _ONLY_IN_NOTEBOOKS.search(source):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        lines, number = source.splitlines(), error.lineno or 0
        text = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        quoted = f", `{text if len(text) <= 60 else text[:59] + '…'}`" if text else ""
        return f"line {number}{quoted}: {error.msg}"
    except (*UNPARSABLE, OverflowError):
        return None
    return None


def answered(source: str) -> set[str]:
    """Names of the functions and classes at the top level that do more than raise NotImplementedError."""
    return {node.name for node in _definitions(source) if not _is_stub(node)}


def looks_like_defining(source: str, name: str) -> bool:
    """Whether a line begins as the definition of ``name`` does; also for source that does not parse."""
    pattern = rf"^(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(name)}\b"
    return len(source) <= MAX_BYTES and re.search(pattern, source, re.MULTILINE) is not None


def elsewhere(cells: Sequence[str], answer: int | None, name: str) -> int | None:
    """The last of the ``cells`` (sources), other than the answer cell, that defines ``name`` and is no stub."""
    found = [i for i, source in enumerate(cells) if i != answer and name in answered(source)]
    return found[-1] if found else None


def stands_in(names: Sequence[str], cell: int, answer: int | None) -> str:
    """The sentence that tells where an answer was found. Positions are among the code cells, from 0."""
    what = (
        f"your {' and '.join(names)} {'stand' if len(names) > 1 else 'stands'} in code cell {cell + 1} of the notebook"
    )
    if answer is None:
        return f"{what}, which is not marked as the answer cell"
    return f"{what}, {'below' if cell > answer else 'above'} the answer cell (code cell {answer + 1})"


def _definitions(source: str) -> list[_Function | ast.ClassDef]:
    if len(source) > MAX_BYTES:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except UNPARSABLE:
        return []
    return [node for node in tree.body if isinstance(node, _Function | ast.ClassDef)]


def _is_stub(node: _Function | ast.ClassDef) -> bool:
    """A function whose body is `raise NotImplementedError`, or a class all of whose methods are such."""
    if isinstance(node, ast.ClassDef):
        methods = [each for each in node.body if isinstance(each, _Function)]
        return bool(methods) and all(map(_is_stub, methods))
    body = [each for each in node.body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
    return [ast.unparse(each).removesuffix("()") for each in body] == ["raise NotImplementedError"]
