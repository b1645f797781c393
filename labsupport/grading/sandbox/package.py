"""The copy of `labsupport` that is there inside a sandbox: the checks can observe in it, and cannot judge.

What judges an answer, and the reference answers that it judges by, are cut out of the check modules: the sandbox
need not be trusted with what it does not have. Of each class `judge`, `inputs` and `visit` go, then every function,
class, constant and import that `EXERCISE` does not need to observe, in all files of the exercise; files of which
nothing is left are not written. The algorithms stay as they are: an answer may use them, as in the notebook. Of
`grading` only the modules that run inside are copied.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import labsupport

RUNS_INSIDE = (
    "__init__", "zygote", "supervisor", "processes", "kernel", "stand_ins", "limits", "namespaces", "landlock", "linux",
)  # fmt: skip
OUTSIDE = ("judge", "inputs", "visit", "meet")  # methods of checks
STAYS_OUTSIDE = ("visit.py", "recorder.py")  # of checks: who talks to an app that is hosted inside
ABSTRACT = """
def inputs(self, seed): raise NotImplementedError
def judge(self, inputs, values): raise NotImplementedError
def visit(self, channel, inputs): raise NotImplementedError
def meet(self, visit, inputs, outcome): raise NotImplementedError
def __call__(self, *functions, **options): return None
"""  # a student may call a check in the middle of a cell, where it must not end it


def build_package(folder: Path) -> None:
    """Write ``folder/labsupport``."""
    source = Path(labsupport.__file__).parent
    target = folder / "labsupport"
    leave_out = shutil.ignore_patterns("checks", "grading", "serving", "widgets")
    shutil.copytree(source, target, ignore=leave_out)
    inside = target / "grading" / "sandbox"
    inside.mkdir(parents=True)
    shutil.copy2(source / "grading" / "__init__.py", inside.parent)
    for name in RUNS_INSIDE:
        shutil.copy2(source / "grading" / "sandbox" / f"{name}.py", inside)
    write_checks(source / "checks", target / "checks")


def write_checks(source: Path, target: Path) -> None:
    """Copy the checks' folder, each exercise (a folder or a file `ex..`) without what judges."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("ex*", "__pycache__", *STAYS_OUTSIDE))
    for exercise in sorted(source.glob("ex*")):
        is_folder = exercise.is_dir()
        paths = sorted(exercise.glob("*.py")) if is_folder else [exercise]
        face = f"labsupport.checks.{exercise.stem}"
        names = {path: face if path.stem in ("__init__", exercise.stem) else f"{face}.{path.stem}" for path in paths}
        reduced = without_judges(face, {name: path.read_text(encoding="utf-8") for path, name in names.items()})
        for path, name in names.items():
            if name in reduced:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                copy.write_text(reduced[name], encoding="utf-8")


def without_judges(face: str, sources: Mapping[str, str]) -> dict[str, str]:
    """The modules of one exercise reduced to what the `EXERCISE` of its ``face`` and the checks' `run` need.

    Raises:
        ValueError: a module is imported whole, so that what is used of it cannot be told.
    """
    trees = {name: ast.parse(source) for name, source in sources.items()}
    _cut_methods(trees.values())
    kept = _reached_across(trees, face, "EXERCISE")
    reduced = {}
    for module, names in kept.items():
        tree = trees[module]
        tree.body = [_narrowed(node, names) for node in tree.body if _defined(node) & (names | {"annotations"})]
        reduced[module] = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    return reduced


def _cut_methods(trees: Collection[ast.Module]) -> None:
    """Reduce each check, and each class from which it may take `judge` or `inputs`, to `run`, `host` and helpers."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    checks = {"Check"}
    while True:
        found = {node.name for node in classes if _bases(node) & checks or _methods(node) & set(OUTSIDE)}
        if found <= checks:
            break
        checks |= found
    for node in classes:
        if node.name in checks:
            node.body = (
                _reached(node.body, {"run", "host", *_assigned(node.body)}, _attributes) + ast.parse(ABSTRACT).body
            )


def _reached_across(trees: Mapping[str, ast.Module], face: str, root: str) -> dict[str, set[str]]:
    """module -> the names of it that ``root`` of the ``face`` needs, directly or through other modules."""
    reached: dict[str, set[str]] = {}
    wanted = [(face, root)]
    while wanted:
        module, name = wanted.pop()
        if name in reached.setdefault(module, set()):
            continue
        reached[module].add(name)
        for node in trees[module].body:
            if name not in _defined(node):
                continue
            if isinstance(node, ast.ImportFrom) and (source := node.module or "") in trees:
                origin = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
                if f"{source}.{origin}" in trees:
                    raise ValueError(f"{module} must import names of {source}.{origin}; it imports all of it")
                wanted.append((source, origin))
            else:
                wanted += [(module, each) for each in _variables(node)]
    return reached


def _narrowed(node: ast.stmt, names: set[str]) -> ast.stmt:
    """An import only of what is needed: the rest may have been cut out where it comes from."""
    if isinstance(node, ast.ImportFrom) and node.module != "__future__":
        node.names = [alias for alias in node.names if (alias.asname or alias.name) in names]
    return node


def _bases(node: ast.ClassDef) -> set[str]:
    return {
        base.id if isinstance(base, ast.Name) else base.attr
        for base in node.bases
        if isinstance(base, ast.Name | ast.Attribute)
    }


def _methods(node: ast.ClassDef) -> set[str]:
    return {each.name for each in node.body if isinstance(each, ast.FunctionDef)}


def _reached(body: list[ast.stmt], wanted: set[str], uses: Callable[[ast.stmt], set[str]]) -> list[ast.stmt]:
    """The statements that define a name of ``wanted``, or one that these use, and so on."""
    reached: set[str] = set()
    while wanted - reached:
        name = (wanted - reached).pop()
        reached.add(name)
        for node in body:
            if name in _defined(node):
                wanted = wanted | uses(node)
    return [node for node in body if _defined(node) & reached]


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    found: set[str] = set()
    left: list[ast.AST] = [node]  # not the variables of comprehensions: those are their own
    while left:
        each = left.pop()
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found.add(each.id)
        if not isinstance(each, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda):
            left += ast.iter_child_nodes(each)
    return found


def _assigned(body: list[ast.stmt]) -> set[str]:
    """Names of a class that are no methods."""
    return {name for node in body if not isinstance(node, ast.FunctionDef) for name in _defined(node)}


def _variables(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _attributes(node: ast.stmt) -> set[str]:
    return {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
