from .alpha import awq_alpha
from .fp8 import fp8_grid
from .grid import quantization_grid
from .outliers import fp8_outlier
from .propagation import gptq_propagation
from .ranges import observer_ranges
from .scales import granularity

__all__ = [
    "awq_alpha",
    "fp8_grid",
    "fp8_outlier",
    "gptq_propagation",
    "granularity",
    "observer_ranges",
    "quantization_grid",
]
