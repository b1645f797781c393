from .fitting import TimedEngine, fit_steps
from .load import load_curve
from .monitor import monitor_dashboard, ten_minutes
from .server import Load, StepSeconds, capacity, simulate_server
from .stack import stack_picture
from .tradeoff import tradeoff_picture

__all__ = [
    "Load",
    "StepSeconds",
    "TimedEngine",
    "capacity",
    "fit_steps",
    "load_curve",
    "monitor_dashboard",
    "simulate_server",
    "stack_picture",
    "ten_minutes",
    "tradeoff_picture",
]
