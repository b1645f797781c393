"""The functions that the student writes, their arguments, and sizes to call them with."""

from __future__ import annotations

import random

PARAMETERS = "attention_parameters"
NAMES = ("hidden_size", "num_heads", "num_kv_heads")
PER_TOKEN = "kv_bytes_per_token"
TOKEN_NAMES = ("num_layers", *NAMES, "bytes_per_element")


def draw_heads(draw: random.Random, grouped: bool) -> list[int]:
    """[hidden_size, num_heads, num_kv_heads]; head_dim differs from both numbers of heads, and is no power of two."""
    heads = draw.choice([8, 16, 32, 64])
    kv_heads = heads // draw.choice([size for size in (2, 4) if grouped] or [1])
    return [heads * draw.choice([24, 48, 80, 96]), heads, kv_heads]
