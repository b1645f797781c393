from .api import create_app
from .backend import Backend, GenerationFailed, Overloaded, Unavailable
from .engine_thread import EngineThread, as_backend
from .local import serving
from .monitor import PerformanceMonitor

__all__ = [
    "Backend",
    "EngineThread",
    "GenerationFailed",
    "Overloaded",
    "PerformanceMonitor",
    "Unavailable",
    "as_backend",
    "create_app",
    "serving",
]
