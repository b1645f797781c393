"""A cell's source as Python, as IPython makes it before running it: without this a magic hides the whole cell.

What runs inside of `%time x = f()`, and what is awaited outside of a function, is found as well.

Only text is transformed; nothing runs.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache

_MAX_BYTES = 200_000
_MAGIC = re.compile(r"^\s*[%!?]|\?\s*(#.*)?$|^\s*\w[\w., ]*=\s*[%!]", re.MULTILINE)
_CELL_MAGIC = re.compile(r"\A(?:\s*%%(?:time|capture|prun)\b[^\n]*\n)+")  # that run the rest of the cell as Python


_LINE_MAGIC = re.compile(r"^([ \t]*)%(?:time|prun)[ \t]+(?!-)", re.MULTILINE)  # that run the rest of the line as Python
_WRITES = re.compile(r"\A\s*%%(?:writefile|file)\s+(?:-a\s+|--append\s+)?[\"']?(?:\./)?(\w+)\.py[\"']?[ \t]*\n")


@lru_cache(maxsize=4096)
def as_python(source: str) -> str:
    """``source`` with its magics as calls; as it is if it has none, or none that IPython understands."""
    if len(source) > _MAX_BYTES or not (_MAGIC.search(source) or "await" in source or "async" in source):
        return source
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        plain = _LINE_MAGIC.sub(r"\1", _CELL_MAGIC.sub("\n", source))
        return _without_await(TransformerManager().transform_cell(plain) if _MAGIC.search(plain) else plain)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source


def written_module(source: str) -> str:
    """The module that a cell writes: "helpers" for `%%writefile helpers.py`; empty if it writes none."""
    found = _WRITES.match(source[:500])
    return found[1] if found else ""


def _without_await(source: str) -> str:
    """The same names in Python that needs no loop: IPython awaits at the top level, where Python's parser cannot."""
    try:
        ast.parse(source)
        return source
    except SyntaxError:
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = compile(source, "<cell>", "exec", flags, dont_inherit=True)
        return ast.unparse(ast.fix_missing_locations(_Waitless().visit(tree)))


class _Waitless(ast.NodeTransformer):
    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self.visit(node.value)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        self.generic_visit(node)
        return ast.For(node.target, node.iter, node.body, node.orelse)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        self.generic_visit(node)
        return ast.With(node.items, node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        return ast.comprehension(node.target, node.iter, node.ifs, 0)
