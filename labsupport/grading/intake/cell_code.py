"""Which names a cell's source defines and uses, found without running it; none if the source does not parse.

Sources are untrusted (`labsupport.checks.source`).
"""

from __future__ import annotations

import ast
import builtins
import symtable

from labsupport.checks.source import MAX_BYTES, UNPARSABLE


def defined_names(source: str) -> set[str]:
    """Global names that the source binds when it runs: functions, classes, imports, variables."""
    table = _table(source)
    if table is None:
        return set()
    found = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    return found | {s.get_name() for inner in _inside(table) for s in inner.get_symbols() if s.is_declared_global()}


def defined_functions(source: str) -> set[str]:
    """Names of the functions and classes at the top level."""
    if len(source) > MAX_BYTES:
        return set()
    try:
        tree = ast.parse(source)
    except UNPARSABLE:
        return set()
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def used_names(source: str) -> set[str]:
    """Global names, other than Python's own, that the source reads at the top level or in any function."""
    table = _table(source)
    if table is None:
        return set()
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
    found |= {s.get_name() for inner in _inside(table) for s in inner.get_symbols() if s.is_global()}
    return found - set(dir(builtins))


def same_code(one: str, other: str) -> bool:
    """Whether two sources differ only in comments and layout."""
    if one.split() == other.split():
        return True
    if max(len(one), len(other)) > MAX_BYTES:
        return False
    try:
        return ast.dump(ast.parse(one)) == ast.dump(ast.parse(other))
    except UNPARSABLE:
        return False


def _table(source: str) -> symtable.SymbolTable | None:
    if len(source) > MAX_BYTES:
        return None
    try:
        return symtable.symtable(source, "<cell>", "exec")
    except UNPARSABLE:
        return None


def _inside(table: symtable.SymbolTable) -> list[symtable.SymbolTable]:
    found = list(table.get_children())
    for each in found:
        found += each.get_children()
    return found
