"""Some sequences of a paged cache as one batch of the language model: the model's side of `PagedKVCache`.

The cache knows whose tokens lie in which block; this says so to a pass of the model, once, for all its layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from labsupport.kvcache.block_attention import PagedStep, PoolShape
from labsupport.kvcache.grouped import check_counts, grouped_attention, pad_right

if TYPE_CHECKING:
    from labsupport.kvcache.paged import PagedKVCache


class PagedBatch:
    """Sequences of a `PagedKVCache` as a `labsupport.lm.Cache`. Use it for as many passes as the batch stays the same.

    ``model(tokens, batch)`` brings the same number of tokens to each; ``model(batch.feed(token_lists), batch)`` as many
    as each list has, and tells the cache what they are, so that their blocks can be found by others.
    """

    def __init__(self, cache: PagedKVCache, seq_ids: Sequence[Hashable]) -> None:
        self.cache, self.seq_ids = cache, list(seq_ids)
        twice = [seq_id for seq_id, count in Counter(self.seq_ids).items() if count > 1]
        if not self.seq_ids or twice:
            raise ValueError(f"seq_ids must be one or more different ids; got {self.seq_ids}")
        for seq_id in self.seq_ids:
            cache._get(seq_id)
        self._fed: list[list[int]] | None = None
        self._in_pass: list[list[int]] | None = None
        self._counts: list[int] = []
        self._time = 0
        self._step: PagedStep | None = None

    @property
    def num_layers(self) -> int:
        return self.cache.num_layers

    @property
    def lengths(self) -> list[int]:
        return [self.cache.length(seq_id) for seq_id in self.seq_ids]

    def feed(self, token_lists: Sequence[Sequence[int]]) -> Int64[Tensor, "batch longest"]:
        """Say which tokens the next pass brings to each sequence (none is allowed); get them padded on the right.

        Raises:
            ValueError: not one list a sequence, or all are empty.
        """
        counts = [len(tokens) for tokens in token_lists]
        if len(counts) != len(self.seq_ids) or not any(counts):
            raise ValueError(
                f"token_lists must be {len(self.seq_ids)} lists (one a sequence) that are not all empty; "
                f"got lengths {counts}"
            )
        self._fed = [list(map(int, tokens)) for tokens in token_lists]
        return pad_right(self._fed, self.cache.device)

    def positions(self, batch: int, time: int) -> Int64[Tensor, "batch time"]:
        """Positions of the new tokens; begins a pass, and takes the blocks that it needs.

        Raises:
            ValueError: the tokens are not of as many sequences, or not those given to `feed`.
            CacheFull: too few blocks are free. Nothing has changed then.
        """
        if batch != len(self.seq_ids):
            raise ValueError(f"tokens must hold {len(self.seq_ids)} sequences (those of the batch); got {batch}")
        self._in_pass, self._fed = self._fed, None
        self._counts = [time] * batch if self._in_pass is None else [len(tokens) for tokens in self._in_pass]
        check_counts(self._counts, batch, time)
        self.cache._make_room(self.seq_ids, self._counts)
        self._time, self._step = time, None
        starts = torch.tensor(self.lengths, device=self.cache.device)
        return starts[:, None] + torch.arange(time, device=starts.device)

    @torch.no_grad()
    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        """Store the new keys and values of one layer and attend over all that the sequences hold, causally."""
        step = self._plan(query.shape[1])
        self.store(layer_index, key, value)
        if step.from_empty:
            return grouped_attention(query, key, value, is_causal=True)
        keys, values = self.cache.blocks[layer_index]
        scratch = self._scratch(len(step.block_rows) * self.cache.block_size * self.cache.head_dim)
        return step.attend(query, keys, values, scratch)

    @torch.no_grad()
    def store(self, layer_index: int, key: Tensor, value: Tensor) -> None:
        """The first half of `attend`."""
        step = self._plan(key.shape[1])
        keys, values = self.cache.blocks[layer_index]
        step.store(keys, key)
        step.store(values, value)

    def advance(self, time: int) -> None:
        """All layers are through: the new tokens count as held, and full blocks can be found."""
        tokens: Sequence[Sequence[int] | None] = self._in_pass or [None] * len(self.seq_ids)
        for seq_id, count, token_ids in zip(self.seq_ids, self._counts, tokens, strict=True):
            self.cache._grow(seq_id, count, token_ids)
        self._step = self._in_pass = None
        self._counts = []

    def _plan(self, num_heads: int) -> PagedStep:
        """Worked out in the first layer of a pass, which knows the number of query heads."""
        if self._step is None:
            assert self._counts, "positions() begins a pass"
            cache = self.cache
            pool = PoolShape(cache.num_kv_heads, cache.block_size, num_heads, cache.device)
            tables = [cache._get(seq_id).block_table for seq_id in self.seq_ids]
            self._step = PagedStep.plan(tables, self.lengths, self._counts, self._time, pool)
        return self._step

    def _scratch(self, size: int) -> Tensor:
        """Memory that all layers gather keys into: fresh memory for each would cost more than the gathering."""
        if self.cache._scratch.numel() < size:
            with torch.inference_mode(False):
                self.cache._scratch = self.cache.blocks.new_empty(size)
        return self.cache._scratch
