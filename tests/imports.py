"""Which module of labsupport imports which, read from the sources.

A name that a package hands on counts as its file's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def modules(root: Path) -> dict[str, Path]:
    """Every module below ``root/labsupport`` by its dotted name; packages are listed by their `__init__`."""
    found = {}
    for path in sorted((root / "labsupport").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """module -> the modules that it imports, anywhere in it: inside functions and under TYPE_CHECKING too."""
    known = modules(root)
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for module, attribute in _imports(path, name):
            target = _owner(module, attribute, known)
            if target is not None and target != name:
                graph[name].add(target)
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a loop, first and last the same; empty where there is none."""
    state: dict[str, str] = {}
    trail: list[str] = []

    def visit(name: str) -> list[str]:
        state[name] = "open"
        trail.append(name)
        for target in sorted(graph[name]):
            if state.get(target) == "open":
                return [*trail[trail.index(target) :], target]
            if target not in state and (found := visit(target)):
                return found
        trail.pop()
        state[name] = "done"
        return []

    for name in sorted(graph):
        if name not in state and (found := visit(name)):
            return found
    return []


def _imports(path: Path, name: str) -> Iterator[tuple[str, str | None]]:
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join(filter(None, [*above, node.module]))
            yield from ((module, alias.name) for alias in node.names)


def _owner(module: str, attribute: str | None, known: dict[str, Path]) -> str | None:
    """The module that `from module import attribute` reads in the end."""
    if attribute is not None and f"{module}.{attribute}" in known:
        return f"{module}.{attribute}"
    if attribute is not None and module in known:
        handed_on = _handed_on(known[module], module).get(attribute)
        return _owner(handed_on, attribute, known) if handed_on else module
    return module if module in known else None


@cache
def _handed_on(path: Path, package: str) -> dict[str, str]:
    """Names that a package's face (its stub, else its `__init__`) takes from its files."""
    if path.stem != "__init__":
        return {}
    stub = path.with_suffix(".pyi")
    face = stub if stub.exists() else path
    return {attribute: module for module, attribute in _imports(face, package) if attribute and module != package}
