"""Attention that reads keys and values through a block table (Kwon et al. 2023, arXiv 2309.06180, section 4.1).

`block_by_block_attention` is the algorithm as a kernel runs it: one sequence, one block at a time, with an online
softmax. `paged_attention` gives the same results for a batch in a few large operations: it gathers the blocks of keys
side by side, takes one softmax over all of them, and sums the values where they lie. Whatever depends on lengths and
block tables alone is planned once a pass (`PagedStep`) and used by every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from labsupport.kvcache.grouped import decode_weights, grouped_attention, real_tokens
from labsupport.lm.cache import visible
from labsupport.numerics.devices import from_host
from labsupport.quantization.fast.probes import has_triton


def block_by_block_attention(
    query: Float[Tensor, "num_heads time head_dim"],
    key_blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
    value_blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
    block_table: Sequence[int],
    length: int,
) -> Float[Tensor, "num_heads time head_dim"]:
    """Causal attention of the last ``time`` of the ``length`` tokens of one sequence, never holding all its scores.

    For each query, three things are carried from block to block: the largest score m so far, the sum l of
    exp(score - m), and the sum o of exp(score - m) · value. When a block brings a larger score, both sums are rescaled
    by exp(m - m_new): the online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3).
    """
    num_heads, time, head_dim = query.shape
    num_kv_heads, block_size = key_blocks.shape[1:3]
    group = num_heads // num_kv_heads
    positions = torch.arange(length - time, length, device=query.device)

    largest = query.new_full((num_heads, time, 1), -torch.inf)
    total = query.new_zeros(num_heads, time, 1)
    output = query.new_zeros(num_heads, time, head_dim)
    for index, block in enumerate(block_table[: -(-length // block_size)]):
        key = key_blocks[block].repeat_interleave(group, dim=0)  # [num_heads, block_size, head_dim]
        value = value_blocks[block].repeat_interleave(group, dim=0)
        held = index * block_size + torch.arange(block_size, device=query.device)
        scores = (query @ key.mT) * head_dim**-0.5
        scores = scores.masked_fill(held > positions[:, None], -torch.inf)

        new_largest = torch.maximum(largest, scores.amax(-1, keepdim=True))
        weights = (scores - new_largest).exp()
        rescale = (largest - new_largest).exp()
        total = total * rescale + weights.sum(-1, keepdim=True)
        output = output * rescale + weights @ value
        largest = new_largest
    return output / total


def paged_attention(
    query: Float[Tensor, "batch num_heads time head_dim"],
    key_blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
    value_blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
    block_tables: Sequence[Sequence[int]],
    lengths: Sequence[int],
) -> Float[Tensor, "batch num_heads time head_dim"]:
    """`block_by_block_attention` for a batch, at speed: the queries are the last ``time`` tokens of each sequence."""
    num_heads, time = query.shape[1:3]
    num_kv_heads, block_size = key_blocks.shape[1:3]
    starts = [length - time for length in lengths]
    step = PagedStep.plan(
        block_tables, starts, [time] * len(starts), time, block_size, num_kv_heads, num_heads, query.device
    )
    return step.attend(query, key_blocks, value_blocks)


@dataclass(frozen=True)
class PagedStep:
    """What is the same for all layers of one pass over a batch of sequences.

    The blocks of a layer are seen as two tables: one with a row for each (block, head), from which whole blocks of keys
    are gathered, and one with a row for each (block, head, slot), to which new tokens are written and from which
    decoding sums values.
    """

    total: int  # tokens of the longest sequence, the new ones included
    positions: Int64[Tensor, "batch time"]
    from_empty: bool  # nothing is held yet: the new tokens attend to themselves alone
    mask: Bool[Tensor, "batch time total"] | None
    block_rows: Int64[Tensor, " batch*num_kv_heads*blocks"]
    write_rows: Int64[Tensor, " new*num_kv_heads"]
    write_from: tuple[Tensor, Tensor] | None  # row and column of the tokens that are not padding; None: there is none
    value_sum: ValueSum | None  # None: several new tokens, and values are gathered like keys
    table: Int64[Tensor, "batch blocks"]  # padded with zeros
    lengths: Int64[Tensor, " batch"]  # the new tokens included

    @staticmethod
    def plan(
        block_tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        counts: Sequence[int],
        time: int,
        block_size: int,
        num_kv_heads: int,
        num_heads: int,
        device: torch.device,
    ) -> PagedStep:
        """For sequences that hold ``starts`` tokens and get ``counts`` new ones, padded to ``time``."""
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        total = max(ends)
        positions = from_host(starts, device)[:, None] + torch.arange(time, device=device)  # [batch, time]

        num_blocks = -(-total // block_size)
        tables = [[*table[:num_blocks], *[0] * (num_blocks - len(table))] for table in block_tables]
        table = from_host(tables, device)  # [batch, blocks]
        head = torch.arange(num_kv_heads, device=device)
        block_rows = table[:, None] * num_kv_heads + head[:, None]  # [batch, num_kv_heads, blocks]
        slot = torch.arange(block_size, device=device)
        rows = (block_rows[..., None] * block_size + slot).flatten(2)[..., :total]  # [batch, num_kv_heads, total]

        if min(counts) == max(counts) == 1 == time:
            write_from = None
            write_rows = rows.gather(2, positions[:, None].expand(-1, num_kv_heads, -1))
        else:
            new, column = (from_host(each, device) for each in real_tokens(counts))
            write_from = None if min(counts) == time else (new, column)
            write_rows = rows[new, :, positions[new, column]]  # [new, num_kv_heads]

        ragged, from_empty = min(ends) < total, max(starts) == 0 and time > 1
        mask = None if (time == 1 and not ragged) or from_empty else visible(positions, total)
        value_sum = ValueSum.plan(rows, ends, num_heads, ragged) if time == 1 else None
        return PagedStep(
            total, positions, from_empty, mask, block_rows.flatten(), write_rows.flatten(), write_from, value_sum,
            table, from_host(ends, device),
        )  # fmt: skip

    def store(
        self,
        blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
        new: Float[Tensor, "batch num_kv_heads time head_dim"],
    ) -> None:
        """Write the new tokens, padding left out, into their slots."""
        if self.write_from is None:
            tokens = new.transpose(1, 2).reshape(-1, new.shape[-1])
        else:
            tokens = new[self.write_from[0], :, self.write_from[1]].flatten(0, 1)
        blocks.view(-1, new.shape[-1]).index_copy_(0, self.write_rows, tokens.to(blocks.dtype))

    def attend(
        self,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key_blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
        value_blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
        scratch: Tensor | None = None,
        window: int | None = None,
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        """Attention over all that the blocks hold of each sequence. ``scratch``: memory for the gathered keys."""
        key = self.gather(key_blocks, len(query), scratch)
        mask, is_causal = self.mask_within(window)
        if self.value_sum is None:
            return grouped_attention(query, key, self.gather(value_blocks, len(query)), mask, is_causal)
        return self.value_sum(decode_weights(query, key, mask), value_blocks).view(query.shape)

    def mask_within(self, window: int | None, total: int | None = None) -> tuple[Tensor | None, bool]:
        """Mask over ``total`` slots (None: those of the longest sequence), and whether the plain causal one is meant,
        where a token sees only the last ``window`` tokens."""
        if window is None or window >= self.total:
            return self.mask, self.from_empty
        return visible(self.positions, self.total if total is None else total, window), False

    def gather(
        self,
        blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
        batch: int,
        scratch: Tensor | None = None,
    ) -> Float[Tensor, "batch num_kv_heads total head_dim"]:
        """The blocks of each sequence side by side."""
        num_kv_heads, block_size, head_dim = blocks.shape[1:]
        rows, width = len(self.block_rows), block_size * head_dim
        table = blocks.view(-1, width)
        if scratch is None:
            gathered = table.index_select(0, self.block_rows)
        else:
            gathered = torch.index_select(table, 0, self.block_rows, out=scratch[: rows * width].view(rows, width))
        return gathered.view(batch, num_kv_heads, -1, head_dim)[:, :, : self.total]


def by_kernel(step: PagedStep, query: Tensor, window: int | None, block_size: int) -> bool:
    """Whether triton_attention.py computes it: one new token a sequence, on a CUDA GPU."""
    whole = window is None or window >= step.total
    return query.is_cuda and query.shape[2] == 1 and whole and block_size & (block_size - 1) == 0 and has_triton()


@dataclass(frozen=True)
class ValueSum:
    """Σ weight · value of one new token a sequence, values picked by index: no gathering, and padding costs nothing."""

    rows: Int64[Tensor, " weights"]  # the row of the value that belongs to each weight that is not masked
    take: Int64[Tensor, " weights"] | None  # the place of that weight among all weights (None: none is masked)
    offsets: Int64[Tensor, " batch*num_heads+1"]  # where the weights of each head begin

    @staticmethod
    def plan(
        rows: Int64[Tensor, "batch num_kv_heads total"], ends: Sequence[int], num_heads: int, ragged: bool
    ) -> ValueSum:
        num_kv_heads, total = rows.shape[1:]
        every = rows[:, :, None].expand(-1, -1, num_heads // num_kv_heads, -1)  # [batch, num_kv_heads, group, total]
        take, taken = None, every.flatten()
        lengths = from_host(ends, rows.device).repeat_interleave(num_heads, output_size=len(ends) * num_heads)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        if ragged:
            # Row r of the weights has its first lengths[r] taken. How many these are is known here: to ask for the
            # places that are not masked (`nonzero`) would make the host wait for a GPU.
            count = num_heads * sum(ends)
            row = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths, output_size=count)
            take = torch.arange(count, device=rows.device) - offsets[row] + row * total
            taken = taken[take]
        return ValueSum(taken, take, offsets)

    def __call__(
        self,
        weights: Float[Tensor, "batch num_kv_heads group total"],
        value_blocks: Float[Tensor, "num_blocks num_kv_heads block_size head_dim"],
    ) -> Float[Tensor, "batch*num_heads head_dim"]:
        weights = weights.flatten() if self.take is None else weights.flatten().index_select(0, self.take)
        return F.embedding_bag(
            self.rows, value_blocks.view(-1, value_blocks.shape[-1]), self.offsets, mode="sum",
            per_sample_weights=weights, include_last_offset=True,
        )  # fmt: skip
