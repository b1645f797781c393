"""Attention of one new token a sequence over a paged cache on a GPU, in Triton: float blocks, or 8-bit ones.

`block_by_block_attention` (attention.py) as a kernel: one program for each sequence and key-value head walks that
sequence's block table, and carries for all query heads that share the key-value head the largest score so far, the sum
of exp(score - largest), and the weighted sum of values (online softmax). Keys and values are read where they lie, once;
nothing is gathered. Of an 8-bit cache (quantized.py) the codes are read, x = minimum + scale * code, a scale and a
minimum for each head of each token. Kwon et al. 2023, "PagedAttention", https://arxiv.org/abs/2309.06180, section 5.1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def paged_decode_attention(
    query: Float[Tensor, "batch num_heads head_dim"],
    keys: Shaped[Tensor, "num_blocks num_kv_heads block_size head_dim"],
    values: Shaped[Tensor, "num_blocks num_kv_heads block_size head_dim"],
    block_tables: Int[Tensor, "batch blocks"],
    lengths: Int[Tensor, " batch"],
    key_scales: Float[Tensor, "num_blocks num_kv_heads block_size 2"] | None = None,
    value_scales: Float[Tensor, "num_blocks num_kv_heads block_size 2"] | None = None,
) -> Float[Tensor, "batch num_heads head_dim"]:
    """softmax(q·k / sqrt(head_dim))·v over the first ``lengths`` tokens of each sequence, in the query's dtype.

    keys, values: floats; or uint8 codes, with their [scale, minimum] in ``key_scales`` and ``value_scales``.

    Raises:
        ValueError: shapes that do not fit, a block_size that is no power of two, or codes without their scales.
    """
    (batch, num_heads, head_dim), (_, num_kv_heads, block_size, _) = query.shape, keys.shape
    quantized = keys.dtype == torch.uint8
    if quantized != (key_scales is not None) or quantized != (value_scales is not None):
        raise ValueError(
            f"key_scales and value_scales must be given with uint8 codes, and only there; got {keys.dtype}"
        )
    if keys.shape[3] != head_dim or num_heads % num_kv_heads or block_size & (block_size - 1):
        raise ValueError(
            f"keys must be [blocks, a divisor of {num_heads}, a power of two, {head_dim}]; got {list(keys.shape)}"
        )
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    group = num_heads // num_kv_heads
    scales = (key_scales, value_scales) if quantized else (keys, values)  # a kernel takes no None
    _attention_kernel[(batch, num_kv_heads)](
        query.contiguous(), keys, values, *scales, block_tables, lengths, out, block_tables.shape[1], head_dim**-0.5,
        HEADS=group, GROUP=triton.next_power_of_2(group), SIZE=block_size, DIM=head_dim,
        WIDTH=triton.next_power_of_2(head_dim), QUANTIZED=quantized,
    )  # fmt: skip
    return out


@triton.jit
def _attention_kernel(
    query, keys, values, key_scales, value_scales, block_tables, lengths, out, max_blocks, factor,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    QUANTIZED: tl.constexpr,
):  # fmt: skip
    sequence, head, num_kv_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    own, channel, slot = tl.arange(0, GROUP), tl.arange(0, WIDTH), tl.arange(0, SIZE)
    real = (own[:, None] < HEADS) & (channel[None, :] < DIM)
    place = ((sequence * num_kv_heads + head) * HEADS + own[:, None]) * DIM + channel[None, :]
    q = tl.load(query + place, real, 0.0).to(tl.float32) * factor  # [GROUP, WIDTH]: heads that share keys and values

    length = tl.load(lengths + sequence)
    largest = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    output = tl.zeros((GROUP, WIDTH), tl.float32)
    for index in range((length + SIZE - 1) // SIZE):
        block = tl.load(block_tables + sequence * max_blocks + index).to(tl.int64)
        row = (block * num_kv_heads + head) * SIZE + slot  # [SIZE]
        held = index * SIZE + slot < length
        key = _rows(keys, key_scales, row, held, channel, DIM, QUANTIZED)  # [SIZE, WIDTH]
        value = _rows(values, value_scales, row, held, channel, DIM, QUANTIZED)

        scores = tl.sum(q[:, None, :] * key[None, :, :], 2)  # [GROUP, SIZE]; too few rows for a tensor core
        scores = tl.where(held[None, :], scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - new_largest[:, None])
        rescale = tl.exp(largest - new_largest)
        total = total * rescale + tl.sum(weights, 1)
        output = output * rescale[:, None] + tl.sum(weights[:, :, None] * value[None, :, :], 1)
        largest = new_largest
    tl.store(out + place, (output / total[:, None]).to(out.dtype.element_ty), real)


@triton.jit
def _rows(blocks, scales, row, held, channel, DIM: tl.constexpr, QUANTIZED: tl.constexpr):
    """Some tokens of one head as float32; zeros where there is no token or channel."""
    inside = held[:, None] & (channel[None, :] < DIM)
    x = tl.load(blocks + row[:, None] * DIM + channel[None, :], inside, 0).to(tl.float32)
    if QUANTIZED:
        scale = tl.load(scales + 2 * row, held, 0.0).to(tl.float32)
        minimum = tl.load(scales + 2 * row + 1, held, 0.0).to(tl.float32)
        x = tl.where(inside, minimum[:, None] + scale[:, None] * x, 0.0)
    return x
