"""The functions that the student writes, their arguments, and sizes to call them with."""

from __future__ import annotations

import random

BYTES = "kv_cache_bytes"
NAMES = ("batch_size", "seq_len", "num_layers", "num_kv_heads", "head_dim", "bytes_per_element")
FIT = "max_batch_size"
FIT_NAMES = ("memory_bytes", *NAMES[1:])


def draw_sizes(draw: random.Random, scale: int = 1) -> list[int]:
    """[batch_size, seq_len, num_layers, num_kv_heads, head_dim], all different and odd. ``scale`` makes heads wide, so
    that results are large and an answer that goes through layers, heads or sequences one by one stays fast."""
    return [
        draw.choice([3, 5, 7]),
        draw.randrange(101, 2000, 2),
        draw.choice([11, 13, 23, 31]),
        draw.choice([9, 15, 21]),
        draw.choice([33, 65, 95]) * scale,
    ]
