"""A contiguous cache: room for ``capacity`` tokens a sequence, reserved at the start and written in place.

No step copies what is held (`labsupport.lm.ConcatCache` does), and layers do not depend on each other: each sequence
has one length, which advances once, after the last layer. The price is the reservation: a sequence of 10 tokens takes
as much memory as a full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from labsupport.kvcache.grouped import CacheFull, check_counts, grouped_attention, pad_right, real_tokens
from labsupport.lm import Llama
from labsupport.lm.cache import visible
from labsupport.numerics.devices import from_host


class KVCache:
    """Keys and values [layers, batch, kv_heads, capacity, head_dim], for any number of new tokens at once.

    ``model(tokens, cache)`` brings the same number of tokens to every sequence. For different numbers:
    ``model(cache.feed(token_lists), cache)``; the next-token logits of sequence i are then in column
    ``len(token_lists[i]) - 1``, and those after it belong to padding.

    A cache is for inference: no gradient flows through it.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = dict(num_layers=num_layers, batch_size=batch_size, capacity=capacity, num_kv_heads=num_kv_heads,
                     head_dim=head_dim)  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        self.num_layers, self.batch_size, self.capacity = num_layers, batch_size, capacity
        self.num_kv_heads, self.head_dim, self.dtype, self.device = num_kv_heads, head_dim, dtype, torch.device(device)
        self.lengths = [0] * batch_size
        self._fed: list[int] | None = None
        self._step: Step | None = None
        self._allocate()

    @classmethod
    def for_model(cls, model: Llama, batch_size: int, capacity: int, **options: object) -> Self:
        """A cache with the layers, heads, precision and device of ``model``. ``options`` go to the constructor."""
        config, weight = model.config, model.embed_tokens.weight
        assert config.head_dim is not None
        options = {"dtype": weight.dtype, "device": weight.device} | options
        sizes = (config.num_layers, batch_size, capacity, config.num_kv_heads, config.head_dim)
        return cls(*sizes, **options)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes reserved, in use or not."""
        return self.keys.nbytes + self.values.nbytes

    def feed(self, token_lists: Sequence[Sequence[int]]) -> Int64[Tensor, "batch longest"]:
        """Say how many tokens the next pass brings to each sequence (0: none), and get them padded on the right.

        Raises:
            ValueError: not one list for each sequence, or all are empty.
        """
        counts = [len(tokens) for tokens in token_lists]
        if len(counts) != self.batch_size or not any(counts):
            raise ValueError(
                f"token_lists must be {self.batch_size} lists (batch_size) that are not all empty; got lengths {counts}"
            )
        self._fed = counts
        return pad_right(token_lists, self.device)

    def positions(self, batch: int, time: int) -> Int64[Tensor, "batch time"]:
        """Positions of the new tokens. Begins a pass.

        Raises:
            ValueError: the tokens are of another number of sequences than ``batch_size``, or not those given to `feed`.
            CacheFull: a sequence would grow beyond ``capacity``.
        """
        if batch != self.batch_size:
            raise ValueError(f"tokens must hold {self.batch_size} sequences (batch_size); got {batch}")
        counts, self._fed = self._fed or [time] * batch, None
        check_counts(counts, batch, time)
        for index, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if length + count > self.capacity:
                raise CacheFull(
                    f"sequence {index} holds {length} tokens and {count} more do not fit into capacity = "
                    f"{self.capacity}: make the cache with capacity >= {length + count}, or reset() it, or feed less"
                )
        self._step = Step.plan(self.lengths, counts, time, self.device)
        return self._step.positions

    @torch.no_grad()
    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
        window: int | None = None,
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        """Store the new keys and values of one layer, and attend causally over all that is held, or over the last
        ``window`` tokens."""
        assert self._step is not None, "positions() begins a pass"
        self._write(layer_index, key, value, self._step)
        held_key, held_value = self._read(layer_index, self._step.total)
        return grouped_attention(query, held_key, held_value, *self._step.mask_within(window))

    def advance(self, time: int) -> None:
        """All layers are done: the new tokens count as held."""
        assert self._step is not None, "positions() begins a pass"
        self.lengths = self._step.ends
        self._step = None

    def reset(self, sequence: int | None = None) -> None:
        """Forget all sequences, or one. The memory stays reserved."""
        for index in range(self.batch_size) if sequence is None else [sequence]:
            self.lengths[index] = 0
        self._step = self._fed = None

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` tokens of a sequence, for instance after a rejected draft."""
        if not 0 <= length <= self.lengths[sequence]:
            raise ValueError(f"length must lie in 0..{self.lengths[sequence]}; got {length}")
        self.lengths[sequence] = length

    def select(self, sequences: Sequence[int]) -> Self:
        """A new cache with copies of these sequences, repetitions allowed: this is how a contiguous cache forks."""
        other = self._empty_like(len(sequences))
        for mine, theirs in zip(self._storage(), other._storage(), strict=True):
            theirs.copy_(mine[:, list(sequences)])
        other.lengths = [self.lengths[index] for index in sequences]
        return other

    # What a cache of another precision replaces

    def _allocate(self) -> None:
        shape = (self.num_layers, self.batch_size, self.num_kv_heads, self.capacity, self.head_dim)
        # zeros, not empty: even a masked slot must not hold NaN, because 0 · NaN is NaN
        self.keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.values = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _storage(self) -> list[Tensor]:
        return [self.keys, self.values]

    def _empty_like(self, batch_size: int) -> Self:
        sizes = (self.num_layers, batch_size, self.capacity, self.num_kv_heads, self.head_dim)
        return type(self)(*sizes, self.dtype, self.device)

    def _write(self, layer_index: int, key: Tensor, value: Tensor, step: Step) -> None:
        step.store(self.keys[layer_index], key)
        step.store(self.values[layer_index], value)

    def _read(self, layer_index: int, total: int) -> tuple[Tensor, Tensor]:
        """[batch, kv_heads, total, head_dim] each: views, not copies."""
        return self.keys[layer_index, :, :, :total], self.values[layer_index, :, :, :total]


@dataclass(frozen=True)
class Step:
    """What is the same for all layers of one pass: where new tokens go, and what each query may see."""

    positions: Int64[Tensor, "batch time"]
    ends: list[int]  # lengths after the pass
    total: int  # the longest of them
    mask: Bool[Tensor, "batch time total"] | None
    is_causal: bool  # nothing was held before: no mask needed
    start: int | None  # where the new tokens go, if that is the same for all sequences
    index: tuple[Tensor, Tensor, Tensor] | None  # else: sequence, column in the batch, and slot of each real token

    @staticmethod
    def plan(lengths: list[int], counts: list[int], time: int, device: torch.device) -> Step:
        ends = [length + count for length, count in zip(lengths, counts, strict=True)]
        total = max(ends)
        uniform = min(lengths) == max(lengths) and min(counts) == time
        starts = from_host(lengths[:1] if uniform else lengths, device)
        positions = starts[:, None] + torch.arange(time, device=device)
        if uniform:
            from_empty = lengths[0] == 0 and time > 1
            mask = None if time == 1 or from_empty else visible(positions, total)
            return Step(positions, ends, total, mask, from_empty, lengths[0], None)
        rows, columns = (from_host(each, device) for each in real_tokens(counts))
        index = rows, columns, positions[rows, columns]
        return Step(positions, ends, total, visible(positions, total), False, None, index)

    def mask_within(self, window: int | None) -> tuple[Tensor | None, bool]:
        """``mask`` and ``is_causal`` where a token sees only the last ``window`` tokens."""
        if window is None or window >= self.total:
            return self.mask, self.is_causal
        return visible(self.positions, self.total, window), False

    def store(self, slots: Tensor, new: Tensor) -> None:
        """``new`` [batch, kv_heads, time, ...] into ``slots`` [batch, kv_heads, capacity, ...]."""
        if self.index is None:
            assert self.start is not None
            slots[:, :, self.start : self.start + new.shape[2]] = new
        else:
            rows, columns, held = self.index
            slots[rows, :, held] = new[rows, :, columns].to(slots.dtype)
