"""All tokens of a step in one row, decodes and prompt chunks alike: nothing is padded.

Selective batching (Orca: Yu et al., OSDI 2022, section 3.2): embedding, norms, projections and MLP treat every token
alike, so they see [1, tokens] and read each weight once a step. Only attention must know which token belongs to which
sequence: there, the row is split into the sequences that decode, one token each and all together, and each chunk alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from labsupport.kvcache import PagedBatch, PagedKVCache
from labsupport.lm.cache import visible


@dataclass(frozen=True)
class Chunk:
    """Tokens start .. end of the row: the last ones of a sequence that has ``length`` tokens with them."""

    start: int
    end: int
    length: int
    table: Int64[Tensor, " blocks"]

    def mask(self, window: int | None) -> Bool[Tensor, "tokens length"] | None:
        """None: the sequence begins with them, and is_causal is enough."""
        if self.end - self.start == self.length and (window is None or window >= self.length):
            return None
        return visible(torch.arange(self.length - (self.end - self.start), self.length), self.length, window)


class PackedBatch:
    """A `labsupport.lm.Cache` for one pass: ``model(batch.tokens, batch)``.

    Args:
        decodes: id and token of the sequences that decode; they come first in ``tokens``.
        chunks: id and tokens of the other sequences, in order.

    Raises:
        ValueError: there is neither of the two, or an id occurs twice or is unknown.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        decodes: Sequence[tuple[Hashable, int]],
        chunks: Sequence[tuple[Hashable, Sequence[int]]] = (),
    ) -> None:
        parts = [[(seq_id, [token]) for seq_id, token in decodes]] if decodes else []
        parts += [[chunk] for chunk in chunks]  # type: ignore[list-item]
        if not parts:
            raise ValueError("decodes and chunks must not both be empty")
        self.cache, self.num_layers = cache, cache.num_layers
        self._decodes, self._chunks = [seq_id for seq_id, _ in decodes], [(each, len(new)) for each, new in chunks]
        self._parts = [PagedBatch(cache, [seq_id for seq_id, _ in part]) for part in parts]
        fed = [batch.feed([tokens for _, tokens in part]) for batch, part in zip(self._parts, parts, strict=True)]
        self._shapes = [tokens.shape for tokens in fed]
        self.tokens: Int64[Tensor, "1 tokens"] = torch.cat([tokens.flatten() for tokens in fed])[None]

    def positions(self, batch: int, time: int) -> Int64[Tensor, "1 tokens"]:
        """
        Raises:
            ValueError: the tokens are not ``self.tokens``.
            CacheFull: too few blocks are free.
        """
        if (batch, time) != tuple(self.tokens.shape):
            raise ValueError(f"tokens must have shape {list(self.tokens.shape)}; got {[batch, time]}")
        each = [part.positions(*shape) for part, shape in zip(self._parts, self._shapes, strict=True)]
        return torch.cat([positions.flatten() for positions in each])[None]

    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "1 num_heads tokens head_dim"],
        key: Float[Tensor, "1 num_kv_heads tokens head_dim"],
        value: Float[Tensor, "1 num_kv_heads tokens head_dim"],
        window: int | None = None,
    ) -> Float[Tensor, "1 num_heads tokens head_dim"]:
        """Each token attends to its own sequence (the last ``window`` tokens of it)."""
        contexts, start = [], 0
        for part, (rows, time) in zip(self._parts, self._shapes, strict=True):
            end = start + rows * time
            if time == 1:  # [1, heads, rows, head_dim] <-> [rows, heads, 1, head_dim]
                own = [each[:, :, start:end].transpose(0, 2) for each in (query, key, value)]
                contexts.append(part.attend(layer_index, own[0], own[1], own[2], window).transpose(0, 2))
            else:
                own = [each[:, :, start:end] for each in (query, key, value)]
                contexts.append(part.attend(layer_index, own[0], own[1], own[2], window))
            start = end
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=2)

    def advance(self, time: int) -> None:
        for part, shape in zip(self._parts, self._shapes, strict=True):
            part.advance(shape[1])

    # For fast/fused.py, once `positions` has taken the blocks

    @cached_property
    def lengths(self) -> np.ndarray:
        """[decodes]: the length of each sequence, its new token included."""
        return np.array([self.cache.length(seq_id) + 1 for seq_id in self._decodes], np.int64)

    @cached_property
    def tables(self) -> np.ndarray:
        """[decodes, blocks]: the block tables, padded with zeros."""
        tables = [self.cache.block_table(seq_id) for seq_id in self._decodes]
        longest = max(map(len, tables), default=0)
        return np.array([[*table, *[0] * (longest - len(table))] for table in tables], np.int64)

    @cached_property
    def chunks(self) -> list[Chunk]:
        found, start = [], len(self._decodes)
        for seq_id, count in self._chunks:
            held = self.cache.length(seq_id)
            table = torch.tensor(self.cache.block_table(seq_id))
            found.append(Chunk(start, start + count, held + count, table))
            start += count
        return found

    @cached_property
    def slots(self) -> np.ndarray:
        """[tokens]: block · block_size + place in it, where each new token goes."""
        size, found = self.cache.block_size, []
        grown = [(seq_id, 1) for seq_id in self._decodes] + self._chunks
        for seq_id, count in grown:
            held, table = self.cache.length(seq_id), self.cache.block_table(seq_id)
            found += [table[place // size] * size + place % size for place in range(held, held + count)]
        return np.array(found, np.int64)
