"""The exercises by name: the modules `ex..` of this package, imported when they are asked for.

The frame of the checks is imported when it is asked for too: to list the exercises must not take the seconds that
importing torch takes.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labsupport.checks import history

if TYPE_CHECKING:
    from labsupport.checks.check import Exercise

PACKAGE = __name__.rpartition(".")[0]
_HOME = dict.fromkeys(("PUBLIC_SEED", "Check", "CheckFailed", "Exercise", "NotAttempted", "Verdict"), "check")
_HOME |= {"Wrong": "judging"}


def exercises() -> list[str]:
    """Names of all exercises that have checks."""
    return sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name.startswith("ex")
    )


def exercise(name: str) -> Exercise:
    """The exercise called ``name``, such as "ex01_int8_symmetric".

    Raises:
        ValueError: there is no such exercise.
    """
    if name not in exercises():
        raise ValueError(f"exercise must be one of {', '.join(exercises())}, got {name!r}")
    return importlib.import_module(f"{PACKAGE}.{name}").EXERCISE


def by_name(name: str) -> Any:
    """The package's `__getattr__`: its own names, and the module of "ex01", short for "ex01_int8_symmetric".

    Raises:
        AttributeError: nothing is called so.
    """
    if name in _HOME:
        return getattr(importlib.import_module(f"{PACKAGE}.{_HOME[name]}"), name)
    if name.startswith("ex") and name[2:].isdigit():
        for full_name in exercises():
            if full_name.startswith(f"{name}_"):
                history.watch()
                return importlib.import_module(f"{PACKAGE}.{full_name}")
    raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
