"""Names of a subpackage that are imported when they are first used, so that importing the subpackage is light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    namespace: dict[str, Any], submodule_of: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package (PEP 562): ``lazy_names(globals(), {name: submodule, ...})``."""
    package = namespace["__name__"]

    def getattribute(name: str) -> Any:
        if name not in submodule_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{submodule_of[name]}"), name)
        namespace[name] = value
        return value

    return getattribute, lambda: sorted({*namespace, *submodule_of})
