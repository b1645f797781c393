"""The exercises by name: the modules `ex..` of this package, imported when they are asked for."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from labsupport.checks.check import Exercise

PACKAGE = __name__.rpartition(".")[0]


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


def by_short_name(name: str) -> ModuleType:
    """The module of "ex01", which is short for "ex01_int8_symmetric"; the package's `__getattr__`.

    Raises:
        AttributeError: no exercise is called so.
    """
    if name.startswith("ex") and name[2:].isdigit():
        for full_name in exercises():
            if full_name.startswith(f"{name}_"):
                return importlib.import_module(f"{PACKAGE}.{full_name}")
    raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
