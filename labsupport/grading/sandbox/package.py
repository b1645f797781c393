"""The copy of `labsupport` that is there inside a sandbox: the checks can observe in it, and cannot judge.

What judges an answer, and the reference answers that it judges by, are cut out of the check modules: the sandbox
need not be trusted with what it does not have. Of each class `judge` and `inputs` go, then every function, class and
constant of the module that nothing left refers to. The algorithms stay as they are: an answer may use them, as in the
student's own notebook. Of `grading` only the modules that run inside are copied.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import labsupport

RUNS_INSIDE = ("__init__", "zygote", "supervisor", "processes", "kernel", "limits", "namespaces", "landlock", "linux")
ABSTRACT = """
def inputs(self, seed): raise NotImplementedError
def judge(self, inputs, values): raise NotImplementedError
"""


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
    (target / "checks").mkdir()
    for path in sorted((source / "checks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        is_exercise = path.stem.startswith("ex")
        (target / "checks" / path.name).write_text(without_judges(text) if is_exercise else text, encoding="utf-8")


def without_judges(source: str) -> str:
    """A check module's source reduced to what `EXERCISE` and the checks' `run` need."""
    tree = ast.parse(source)
    checks = {"Check"}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and checks & {base.id for base in node.bases if isinstance(base, ast.Name)}:
            checks.add(node.name)
            node.body = _reached(node.body, {"run", *_assigned(node.body)}, _attributes) + ast.parse(ABSTRACT).body
    tree.body = _reached(tree.body, {"EXERCISE", "annotations"}, _variables)
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


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
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _assigned(body: list[ast.stmt]) -> set[str]:
    """Names of a class that are no methods."""
    return {name for node in body if not isinstance(node, ast.FunctionDef) for name in _defined(node)}


def _variables(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _attributes(node: ast.stmt) -> set[str]:
    return {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
