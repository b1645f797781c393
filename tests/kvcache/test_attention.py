"""Paged attention: the readable form, the batched form, and attention written out are equal."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labsupport.kvcache import block_by_block_attention, paged_attention

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


@settings(max_examples=60)
@example(seed=0, heads=(6, 2), block_size=2, lengths=[3, 3], time=3)  # nothing held before: no mask is made
@given(
    seed=st.integers(0, 999),
    heads=st.sampled_from([(6, 6), (6, 2), (4, 1)]),
    block_size=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 17), min_size=1, max_size=4),
    time=st.integers(1, 4),
)
def test_block_by_block_gathered_and_plain_attention_are_equal(
    seed: int, heads: tuple[int, int], block_size: int, lengths: list[int], time: int
) -> None:
    num_heads, kv_heads = heads
    time = min(time, *lengths)
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    keys = torch.randn(sum(counts) + 2, kv_heads, block_size, 8, generator=generator)
    values = torch.randn(keys.shape, generator=generator)
    query = 3 * torch.randn(len(lengths), num_heads, time, 8, generator=generator)

    fast = paged_attention(query, keys, values, tables, lengths)
    for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        reference = block_by_block_attention(query[row], keys, values, table, length)
        torch.testing.assert_close(fast[row], reference, **CLOSE)
        key, value = (each[table].transpose(0, 1).flatten(1, 2)[:, :length] for each in (keys, values))
        key, value = (each.repeat_interleave(num_heads // kv_heads, dim=0) for each in (key, value))
        mask = torch.ones(time, length, dtype=torch.bool).tril(length - time)
        scores = (query[row] @ key.mT / 8**0.5).masked_fill(~mask, -torch.inf)
        torch.testing.assert_close(reference, scores.softmax(-1) @ value, **CLOSE)


def test_online_softmax_withstands_large_scores() -> None:
    query, keys = 300 * torch.ones(1, 1, 4), torch.ones(2, 1, 3, 4)
    keys[1] = 2.0  # exp(600) overflows; the second block's weights are all that is left
    values = torch.cat((torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4)))
    torch.testing.assert_close(block_by_block_attention(query, keys, values, [0, 1], 6), torch.ones(1, 1, 4))
    torch.testing.assert_close(block_by_block_attention(query, keys, values, [1, 0], 6), torch.ones(1, 1, 4))
