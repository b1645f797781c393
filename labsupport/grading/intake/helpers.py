"""Which of a student's own cells run with the answers, so that what works in the notebook works when it is graded.

They are cells that define a name which an answer, or another such cell, uses; cells that change such a thing
(``cfg['one'] = 1``, ``table.append(x)``); and, if names are still missing, cells that may define anything
(``from math import *``); cells that write a module which is imported (``%%writefile helpers.py``), or that only set
something of a module (``torch.set_default_dtype(torch.float64)``). They run before the answers, in the order of the
notebook; cells that change what an answer defines (``Scheduler.step = step``) run after them. All others are play: they
stay out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from labsupport.grading.intake.cell_code import defined_names, parse, used_names
from labsupport.grading.intake.changes import aliases, changed_names, changing_functions, root
from labsupport.grading.intake.magics import as_python, written_module


@dataclass(frozen=True)
class Helpers:
    """Sources of the cells that run, and number and source of those that do not."""

    chosen: tuple[str, ...]
    left_out: tuple[tuple[int, str], ...]
    after: tuple[str, ...] = ()  # those that run after the answers


def choose_helpers(own: Sequence[tuple[int, str]], answers: Sequence[str], setup: Sequence[str]) -> Helpers:
    """Choose among the student's ``own`` cells, given as (number of the cell in the notebook, source)."""
    sources = [source for _, source in own]
    answered = set().union(*(defined_names(source) for source in answers))
    given = answered.union(*(defined_names(source) for source in setup))
    used = set().union(*(used_names(source) for source in answers))
    after = {i for i, source in enumerate(sources) if changed_names(source, calls=False) & answered}
    missing = used.union(*(used_names(sources[i]) for i in after)) - given
    functions = changing_functions(sources)
    changes = [changed_names(source, functions=functions) for source in sources]
    changed_at_all = set().union(*changes)
    writes = {i: name for i, source in enumerate(sources) if (name := written_module(source))}
    defines = [set() if i in after else defined_names(source) - given for i, source in enumerate(sources)]
    chosen = {i for i, source in enumerate(sources) if settings(source) & used}
    while True:
        known = set().union(*(defines[i] for i in chosen))
        new = {i for i, names in enumerate(defines) if names & missing}
        missing |= set().union(*(aliases(source, missing) for source in sources)) & changed_at_all
        new |= {i for i, names in enumerate(changes) if names & missing & known}
        if wanted := set(writes.values()) and set().union(
            *(imported_modules(source) for source in (*answers, *(sources[i] for i in chosen | new | after)))
        ):
            new |= {i for i, name in writes.items() if name in wanted}
        if not new - chosen and missing - known:
            new |= {
                i for i, source in enumerate(sources) if defines_anything(source) and not used_names(source) & answered
            }
        new -= after
        if not new - chosen:
            break
        for i in new - chosen:
            missing |= used_names(sources[i]) - given
        chosen |= new
    return Helpers(
        tuple(sources[i] for i in sorted(chosen)),
        tuple(cell for i, cell in enumerate(own) if i not in chosen | after),
        tuple(sources[i] for i in sorted(after)),
    )


def settings(source: str) -> set[str]:
    """Names of the modules of which the source sets something, if it does nothing else (but import)."""
    tree, found = parse(source), set()
    for node in tree.body if tree is not None else []:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            if not call.func.attr.startswith(("set", "manual_seed", "seed")) or not (name := root(call.func)):
                return set()
            found.add(name)
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            return set()
    return found


def imported_modules(source: str) -> set[str]:
    """The first part of each module that the source imports anywhere."""
    tree = parse(source)
    found: set[str] = set()
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def defines_anything(source: str) -> bool:
    """Whether it may bind names that do not stand in it."""
    tree = parse(source)
    if tree is None:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("exec", "globals"):
            return True
        if isinstance(node, ast.Constant) and node.value in ("pylab", "run"):  # as magics they come out as text
            return "get_ipython" in as_python(source)
    return False


def why_missing(message: str, left_out: Sequence[tuple[int, str]], failed: Sequence[tuple[int, str, str]] = ()) -> str:
    """For the NameError of an answer: which cell would have defined the name, and why it did not; else empty.

    Args:
        left_out: number and source of the cells that did not run.
        failed: number, source and error of those that did, and ended with an error.
    """
    found = re.search(r"NameError: name '(\w+)' is not defined", message)
    if not found:
        return ""
    name = found[1]
    for number, source, error in reversed(failed):
        if name in defined_names(source):
            return f"your cell {number}, which defines {name}, ended with {error}"
    for number, source in reversed(left_out):
        if name in defined_names(source):
            return (
                f"your cell {number} defines {name}, and was left out: no answer uses {name} by that name in its code"
            )
        if parse(source) is None and re.search(rf"\b{re.escape(name)}\b", source):
            return f"your cell {number}, in which {name} stands, was left out: it is not valid Python"
    return f"no cell of your notebook defines {name}: if it worked, the kernel still knew it from a cell that is gone"
