from .load import load_curve
from .monitor import monitor_dashboard, ten_minutes
from .server import Load, StepSeconds, capacity, simulate_server

__all__ = [
    "Load",
    "StepSeconds",
    "capacity",
    "load_curve",
    "monitor_dashboard",
    "simulate_server",
    "ten_minutes",
]
