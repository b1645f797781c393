from .channels import channel_importance
from .front import trade_off
from .magnitude import sparsity
from .patterns import semi_structured
from .soft_targets import temperature

__all__ = [
    "channel_importance",
    "semi_structured",
    "sparsity",
    "temperature",
    "trade_off",
]
