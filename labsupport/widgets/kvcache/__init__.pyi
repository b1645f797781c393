from .blocks import block_table
from .gpu_memory import memory
from .sharing import heads
from .token_time import decoding

__all__ = [
    "block_table",
    "decoding",
    "heads",
    "memory",
]
