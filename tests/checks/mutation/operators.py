"""Systematic mistakes: every small change of an answer that our operators know.

`mutants(source)` yields each changed source once, with the operator's name and the line that changed. The operators are
those of mutation testing (constants, operators, conditions, statements), and those of this field's mistakes: a dropped
clamp, round or abs, another reduction, another axis or dtype, swapped arguments, state on the class.

Why not a mutation tool: mutmut (3.8) and cosmic-ray rewrite the modules of a package and run its test suite once a
mutant, torch's import included; here the cells of notebooks are graded in process, with seeds. Of mutmut's sixteen
operators none drops a call or a statement, negates a condition, swaps arguments, or knows that amax may become amin,
which is most of what follows.
"""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Change = tuple[str, ast.AST | None]  # the operator's name, and the node that takes the place; None: the statement goes

COMPARISONS: dict[type, list[type]] = {
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn],
    ast.NotIn: [ast.In], ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
}  # fmt: skip
ARITHMETIC: dict[type, list[type]] = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Add, ast.Div], ast.Div: [ast.Mult, ast.FloorDiv],
    ast.FloorDiv: [ast.Div, ast.Mult], ast.Mod: [ast.FloorDiv], ast.Pow: [ast.Mult], ast.MatMult: [ast.Mult],
    ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd],
}  # fmt: skip
SWAPPED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
NAMES = {
    "amax": ["amin", "mean", "sum"], "amin": ["amax", "mean"], "max": ["min", "mean"], "min": ["max"],
    "mean": ["sum", "amax"], "sum": ["mean"], "round": ["floor", "ceil", "trunc"], "abs": ["square", "neg"],
    "popleft": ["pop"], "pop": ["popleft"], "append": ["appendleft"], "deque": ["list", "set"],
    "list": ["set", "tuple"], "argsort": ["sort"], "float": ["half", "bfloat16", "double", "int"], "ones": ["zeros"],
    "zeros": ["ones"], "softmax": ["log_softmax"], "log_softmax": ["softmax"], "clone": ["detach"], "inv": ["pinv"],
    "all": ["any"], "any": ["all"], "int8": ["uint8", "int16", "float32"], "float32": ["float64", "float16"],
    "bool": ["uint8", "int64"], "cross_entropy": ["nll_loss"], "kl_div": ["mse_loss"], "ReLU": ["Identity", "Sigmoid"],
    "Adam": ["SGD"], "view": ["expand"], "no_grad": ["enable_grad"],
}  # fmt: skip
TEXTS = {"batchmean": ["mean", "sum", "none"], "mean": ["sum"], "sum": ["mean"]}
Loop = (ast.For, ast.While)


@dataclass(frozen=True)
class Mutant:
    operator: str
    line: str  # "old -> new" of the lines that differ
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of ``source`` once."""
    tree = ast.parse(source)
    before = ast.unparse(tree)
    seen = {before}
    docstrings = {id(node) for owner in ast.walk(tree) for node in _docstring(owner)}
    parameters = _parameters(tree)
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in docstrings:
            continue
        for operator, new in _changes(node, parameters.get(id(node), [])):
            changed = copy.deepcopy(tree)
            _replace(changed, list(ast.walk(changed))[index], new)
            after = ast.unparse(ast.fix_missing_locations(changed))
            if after not in seen:
                seen.add(after)
                yield Mutant(operator, _difference(before, after), after)


def _changes(node: ast.AST, parameters: list[str]) -> Iterator[Change]:
    if isinstance(node, ast.expr):
        yield from _expression(node, parameters)
    elif isinstance(node, ast.stmt):
        yield from _statement(node)
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield "condition dropped", _with(node, ifs=[])
        yield "condition negated", _with(node, ifs=[ast.UnaryOp(ast.Not(), each) for each in node.ifs])
    elif isinstance(node, ast.arguments) and node.defaults:
        yield "default dropped", _with(node, defaults=[])


def _expression(node: ast.expr, parameters: list[str]) -> Iterator[Change]:
    if isinstance(node, ast.Constant):
        yield from (("constant", ast.Constant(value)) for value in _constants(node.value))
    elif isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load):
            yield from (("other argument", ast.Name(name, node.ctx)) for name in parameters if name != node.id)
            yield from (("other function", ast.Name(name, node.ctx)) for name in NAMES.get(node.id, []))
    elif isinstance(node, ast.Attribute):
        yield from (("other function", _with(node, attr=name)) for name in NAMES.get(node.attr, []))
        if node.attr == "T":
            yield "transpose dropped", node.value
    elif isinstance(node, ast.BinOp):
        yield from (("arithmetic", _with(node, op=op())) for op in ARITHMETIC.get(type(node.op), []))
        yield "operand dropped", node.left
        yield "operand dropped", node.right
        if isinstance(node.op, SWAPPED):
            yield "operands swapped", _with(node, left=node.right, right=node.left)
    elif isinstance(node, ast.BoolOp):
        yield "and, or", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        yield from (("operand dropped", _with(node, values=_without(node.values, i))) for i in range(len(node.values)))
    elif isinstance(node, ast.UnaryOp):
        yield "sign or not dropped", node.operand
    elif isinstance(node, ast.Compare):
        yield from (("comparison", _with(node, ops=[op()])) for op in COMPARISONS[type(node.ops[0])])
    elif isinstance(node, ast.IfExp):
        yield "condition negated", _with(node, body=node.orelse, orelse=node.body)
        yield "branch dropped", node.body
        yield "branch dropped", node.orelse
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, ast.Slice):
        yield from (("bound dropped", _with(node, **{end: None})) for end in ("lower", "upper") if getattr(node, end))
    elif isinstance(node, ast.Subscript):
        yield "index dropped", node.value
    elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.ctx, ast.Load):
        yield "order", _with(node, elts=node.elts[::-1])


def _call(node: ast.Call) -> Iterator[Change]:
    if isinstance(node.func, ast.Attribute):
        yield "call dropped", node.func.value
    if node.args:
        yield "call dropped", node.args[0]
        yield "argument dropped", _with(node, args=node.args[:-1])
    if len(node.args) > 1:
        yield "arguments swapped", _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
    for i, keyword in enumerate(node.keywords):
        yield f"{keyword.arg}= dropped", _with(node, keywords=_without(node.keywords, i))
    if isinstance(node.func, ast.Name) and node.func.id == "range":
        yield "first round dropped", _with(node, args=[ast.Constant(1), *node.args[-1:]])
        yield "last round dropped", _with(node, args=[ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))])


def _statement(node: ast.stmt) -> Iterator[Change]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        for i in range(len(node.decorator_list)):
            yield "decorator dropped", _with(node, decorator_list=_without(node.decorator_list, i))
        return
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
        return
    yield "statement dropped", None
    if isinstance(node, ast.Return) and node.value is not None:
        yield "None returned", _with(node, value=None)
    if isinstance(node, ast.AugAssign):
        yield from (("arithmetic", _with(node, op=op())) for op in ARITHMETIC.get(type(node.op), []))
        target = ast.parse(ast.unparse(node.target), mode="eval").body
        yield "assigned", ast.Assign([node.target], node.value, lineno=0)
        yield "no longer in place", ast.Assign([node.target], ast.BinOp(target, node.op, node.value), lineno=0)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
        on = node.targets[0]
        if isinstance(on.value, ast.Name) and on.value.id == "self":
            shared = ast.parse(f"type(self).{on.attr}", mode="eval").body
            yield "state on the class", ast.Assign([shared], node.value, lineno=0)
            first = f"if not hasattr(type(self), '{on.attr}'):\n    type(self).{on.attr} = {ast.unparse(node.value)}"
            yield "state on the class, once", ast.parse(first).body[0]
    if isinstance(node, ast.If | ast.While):
        yield "condition negated", _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.While):
        yield "once instead of while", ast.If(node.test, node.body, [])
    if isinstance(node, ast.If):
        yield "always", ast.If(ast.Constant(True), node.body, [])
    if isinstance(node, Loop):
        yield "one round only", _with(node, body=[*node.body, ast.Break()])


def _constants(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1, value * 2, value / 2 if isinstance(value, float) else value // 2, -value, 0]
    if value is None:
        return [0]
    return TEXTS.get(value, []) if isinstance(value, str) else []


def _docstring(owner: ast.AST) -> list[ast.AST]:
    if (
        isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
        and ast.get_docstring(owner) is not None
    ):
        return list(ast.walk(owner.body[0]))
    return []


def _parameters(tree: ast.AST) -> dict[int, list[str]]:
    """node -> the parameters of the function that it is in, `self` aside."""
    found: dict[int, list[str]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            names = [argument.arg for argument in function.args.args if argument.arg != "self"]
            found |= {id(node): names for statement in function.body for node in ast.walk(statement)}
    return found


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _without(items: list[Any], index: int) -> list[Any]:
    return items[:index] + items[index + 1 :]


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST | None) -> None:
    new = copy.deepcopy(new) if new is not None else ast.Pass()
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(item is old for item in value):
                setattr(parent, field, [new if item is old else item for item in value])


def _difference(before: str, after: str) -> str:
    """The lines that changed, and which of several equal ones."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    old, new = (" | ".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in ("- ", "+ "))
    of_before = [(line[2:].strip(), line.startswith("-")) for line in lines if line[0] in "- "]
    equal = [changed for text, changed in of_before if text == old]
    return f"{old} -> {new}" + (f" (number {equal.index(True) + 1})" if old and len(equal) > 1 else "")
