"""Sequences of a paged cache as one batch of the language model: the engine's form of paged attention.

A `PagedBatch` knows the positions of the new tokens and the plan of a pass, which is made once for all layers. How
contents are written and read, as floats or as integers, is the cache's: one batch serves every paged cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from labsupport.kvcache.attention import PagedStep
from labsupport.kvcache.grouped import check_counts, pad_right
from labsupport.kvcache.paged import PagedKVCache
from labsupport.numerics.devices import from_host


class PagedBatch:
    """Sequences of a `PagedKVCache` as a `labsupport.lm.Cache`, for as many passes as the batch stays the same.

    ``model(tokens, batch)`` brings the same number of tokens to each sequence. With
    ``model(batch.feed(token_lists), batch)`` each gets its own list, and the cache learns what the tokens are, so that
    other sequences can find their blocks.

    Raises:
        ValueError: no ids, an id twice, or one that is not in the cache.
    """

    def __init__(self, cache: PagedKVCache, seq_ids: Sequence[Hashable]) -> None:
        self.cache, self.seq_ids = cache, list(seq_ids)
        twice = [seq_id for seq_id, count in Counter(self.seq_ids).items() if count > 1]
        if not self.seq_ids or twice:
            raise ValueError(f"seq_ids must be one or more different ids; got {self.seq_ids}")
        self._starts = self.lengths
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
        """Tokens that each sequence holds."""
        return [self.cache.length(seq_id) for seq_id in self.seq_ids]

    def feed(self, token_lists: Sequence[Sequence[int]]) -> Int64[Tensor, "batch longest"]:
        """Say which tokens the next pass brings to each sequence (possibly none), and get them padded on the right.

        Raises:
            ValueError: not one list for each sequence, or all are empty.
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
        """Positions of the new tokens. Begins a pass, and takes the blocks that it needs.

        Raises:
            ValueError: the tokens are of another number of sequences, or not those given to `feed`.
            CacheFull: too few blocks are free. Nothing has changed then.
        """
        if batch != len(self.seq_ids):
            raise ValueError(f"tokens must hold {len(self.seq_ids)} sequences (those of the batch); got {batch}")
        self._in_pass, self._fed = self._fed, None
        self._counts = [time] * batch if self._in_pass is None else [len(tokens) for tokens in self._in_pass]
        check_counts(self._counts, batch, time)
        self.cache.reserve(self.seq_ids, self._counts)
        self._time, self._step, self._starts = time, None, self.lengths
        starts = from_host(self._starts, self.cache.device)
        return starts[:, None] + torch.arange(time, device=starts.device)

    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
        window: int | None = None,
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        """Store the new keys and values of one layer, and attend causally over all that the sequences hold, or over
        the last ``window`` tokens of each."""
        return self.cache.attend(layer_index, self.step(query.shape[1]), query, key, value, window)

    def advance(self, time: int) -> None:
        """All layers are done: the new tokens count as held, and full blocks can be found."""
        tokens: Sequence[Sequence[int] | None] = self._in_pass or [None] * len(self.seq_ids)
        for seq_id, count, token_ids in zip(self.seq_ids, self._counts, tokens, strict=True):
            self.cache.commit(seq_id, count, token_ids)
        self._step = self._in_pass = None
        self._counts = []

    def step(self, num_heads: int) -> PagedStep:
        """The plan of this pass: made in its first layer, which knows the number of query heads."""
        if self._step is None:
            assert self._counts, "positions() begins a pass"
            cache = self.cache
            tables = [cache.block_table(seq_id) for seq_id in self.seq_ids]
            self._step = PagedStep.plan(
                tables, self._starts, self._counts, self._time, cache.block_size, cache.num_kv_heads, num_heads,
                cache.device,
            )  # fmt: skip
        return self._step
