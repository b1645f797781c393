"""What a cell changes without binding a name (``cfg["one"] = 1``, ``table.append(x)``), found without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence

from labsupport.grading.intake.cell_code import parse

_SHOWING = frozenset({"print", "display", "len", "type", "help", "repr", "list", "sorted", "sum", "max", "min"})
_CHANGING = frozenset({
    "add", "append", "appendleft", "clear", "copy_", "discard", "extend", "fill", "insert", "load_state_dict", "pop",
    "popitem", "popleft", "register_buffer", "remove", "reverse", "setdefault", "sort", "subtract", "update",
})  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def changed_names(source: str, calls: bool = True, functions: Mapping[str, set[str]] | None = None) -> set[str]:
    """Names of what the source changes without binding the name, at its top level.

    Args:
        calls: a call may change what it is given, and what its method belongs to.
        functions: name -> names of what a call of it changes, for the student's own functions.
    """
    tree = parse(source)
    return _changed(tree.body, calls, functions or {}) if tree is not None else set()


def changing_functions(sources: Sequence[str]) -> dict[str, set[str]]:
    """Functions at the top level -> names that are not their own, of what they change."""
    found: dict[str, set[str]] = {}
    for source in sources:
        tree = parse(source)
        for node in tree.body if tree is not None else []:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
                own |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                if names := _changed(node.body, False, {}) - own:
                    found[node.name] = found.get(node.name, set()) | names
    return found


def aliases(source: str, names: set[str]) -> set[str]:
    """Other names that the source gives to one of ``names``, or to a part of it."""
    tree = parse(source)
    found: set[str] = set()
    for node in _statements(tree.body) if tree is not None else ():
        if isinstance(node, ast.Assign) and (root(node.value) or getattr(node.value, "id", "")) in names:
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def root(target: ast.expr) -> str:
    """The name at the bottom of ``a.b[c].d``; empty for a plain name."""
    node = target
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) and node is not target else ""


def _changed(body: Sequence[ast.stmt], calls: bool, functions: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    for node in _statements(body):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif calls and isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Attribute):
                targets = [call.func]
            if not (isinstance(call.func, ast.Name) and call.func.id in _SHOWING):
                found |= {argument.id for argument in call.args if isinstance(argument, ast.Name)}
        for call in _calls(node):
            if isinstance(call.func, ast.Attribute) and call.func.attr in _CHANGING:
                targets.append(call.func)
            elif isinstance(call.func, ast.Name):
                found |= functions.get(call.func.id, set())
        found |= {name for target in targets if (name := root(target))}
    return found


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that run when the body does, those inside of `if`, `for`, `with` and `try` too."""
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            for field in ("body", "orelse", "finalbody"):
                waiting += getattr(node, field, [])
            for handler in getattr(node, "handlers", []):
                waiting += handler.body


def _calls(statement: ast.stmt) -> Iterator[ast.Call]:
    """The calls in a statement itself: not those in functions, nor in statements inside of it."""
    waiting: list[ast.AST] = [statement] if not isinstance(statement, _FUNCTIONS) else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            yield node
        waiting += [
            each
            for each in ast.iter_child_nodes(node)
            if not isinstance(each, (*_FUNCTIONS, ast.stmt, ast.ExceptHandler))
        ]
