"""The right answers."""

from __future__ import annotations


def cache_bytes(batch: int, tokens: int, layers: int, heads: int, dim: int, width: int = 2) -> int:
    return 2 * batch * tokens * layers * heads * dim * width


def num_that_fit(memory: int, tokens: int, layers: int, heads: int, dim: int, width: int = 2) -> int:
    return memory // cache_bytes(1, tokens, layers, heads, dim, width)
