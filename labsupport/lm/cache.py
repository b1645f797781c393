"""What attention needs from a key-value cache, and the simplest correct one.

The model knows three verbs and nothing about blocks, slots or precision: chapter 3 builds better caches behind them,
chapter 4 an engine, and neither changes the model.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Cache(Protocol):
    """One forward pass calls ``positions`` once, ``attend`` once a layer, and ``advance`` once at its end.

    A pass that fails before ``advance`` leaves the contents of the cache as they were, seen from outside.
    """

    def positions(self, batch: int, time: int) -> Int64[Tensor, "batch time"]:
        """Positions of the ``time`` new tokens of each sequence ([1, time] where they are the same for all)."""
        ...

    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
        window: int | None = None,
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        """Store the new keys and values; attend causally over all that the sequence holds, the new ones included, or
        over the last ``window`` tokens, the query's own included."""
        ...

    def advance(self, time: int) -> None:
        """All layers are done: ``time`` more tokens are held."""
        ...


class ConcatCache:
    """Grows by concatenation: correct, short, and slow, since every step copies everything."""

    def __init__(self, num_layers: int) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1; got {num_layers}")
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.length = 0

    def positions(self, batch: int, time: int) -> Int64[Tensor, "1 time"]:
        return torch.arange(self.length, self.length + time)[None]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
        old_key, old_value = self.keys[layer_index], self.values[layer_index]
        if old_key is not None and old_value is not None:
            # cut to `length`: an earlier pass may have failed after some of its layers
            key = torch.cat((old_key[:, :, : self.length], key), dim=2)
            value = torch.cat((old_value[:, :, : self.length], value), dim=2)
        self.keys[layer_index], self.values[layer_index] = key, value
        time, total = query.shape[2], key.shape[2]
        mask = visible(torch.arange(total - time, total, device=query.device), total, window)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    def advance(self, time: int) -> None:
        self.length += time


def visible(
    positions: Int64[Tensor, "*batch time"], total: int, window: int | None = None
) -> Bool[Tensor, "*batch time total"]:
    """Causal: the query at position p sees slots 0 to p, of these the last ``window`` if there is one. Slots after p
    (padding, old contents) stay hidden."""
    slots, own = torch.arange(total, device=positions.device), positions[..., None]
    return slots <= own if window is None else (slots <= own) & (slots > own - window)
