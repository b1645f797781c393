"""Chapter 4, serving in production: one idea a file. Names below are imported when first used: this import is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labsupport.lazy import lazy_names

if TYPE_CHECKING:
    from labsupport.serving.api import create_app
    from labsupport.serving.backend import Backend, GenerationFailed, Overloaded, Unavailable, as_backend
    from labsupport.serving.engine_thread import EngineThread
    from labsupport.serving.monitor import PerformanceMonitor

_SUBMODULES = {
    "api": ("create_app",),
    "backend": ("Backend", "GenerationFailed", "Overloaded", "Unavailable", "as_backend"),
    "engine_thread": ("EngineThread",),
    "monitor": ("PerformanceMonitor",),
}
_SUBMODULE_OF = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}

__all__ = [
    "Backend",
    "EngineThread",
    "GenerationFailed",
    "Overloaded",
    "PerformanceMonitor",
    "Unavailable",
    "as_backend",
    "create_app",
]

__getattr__, __dir__ = lazy_names(globals(), _SUBMODULE_OF)
