"""Attention over the contents of a cache: the arithmetic that all caches share.

Query heads that share a key-value head become additional query positions of that head, so that no key or value is
repeated. What a query may see follows from its position: slot j holds position j.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from labsupport.numerics.devices import from_host


def grouped_attention(
    query: Float[Tensor, "batch num_heads time head_dim"],
    key: Float[Tensor, "batch num_kv_heads total head_dim"],
    value: Float[Tensor, "batch num_kv_heads total head_dim"],
    mask: Bool[Tensor, "batch time total"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "batch num_heads time head_dim"]:
    """softmax(q·k / sqrt(head_dim))·v, each group of query heads over its one key-value head.

    ``mask`` is true where a query may look ([1, time, total] if it is the same for all sequences). None: everywhere;
    or, with ``is_causal``, query i sees the keys 0 to i (then time = total), which is cheaper than the equivalent mask.
    """
    if query.shape[2] > 1:
        mask = None if mask is None else mask[:, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=True)
    weights = decode_weights(query, key, mask)
    return (weights @ value).reshape(query.shape)


def decode_weights(
    query: Float[Tensor, "batch num_heads 1 head_dim"],
    key: Float[Tensor, "batch num_kv_heads total head_dim"],
    mask: Bool[Tensor, "batch 1 total"] | None,
) -> Float[Tensor, "batch num_kv_heads group total"]:
    """Attention weights of one new token a sequence. With so few queries, plain products beat the fused kernel."""
    batch, num_heads, _, head_dim = query.shape
    num_kv_heads = key.shape[1]
    grouped = query.reshape(batch, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = (grouped * head_dim**-0.5) @ key.mT
    if mask is not None:
        scores.masked_fill_(~mask[:, None], -torch.inf)
    return scores.softmax(dim=-1)


def pad_right(
    token_lists: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Int64[Tensor, "batch longest"]:
    """Token lists of different lengths as one tensor, padded with zeros on the right.

    On the right, because the causal mask then hides the padding from every real token.
    """
    longest = max((len(tokens) for tokens in token_lists), default=0)
    padded = [[*map(int, tokens), *[0] * (longest - len(tokens))] for tokens in token_lists]
    return from_host(padded, device, torch.int64).view(len(token_lists), longest)


def real_tokens(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Row and column of each token in a right-padded batch that is not padding."""
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    columns = [column for count in counts for column in range(count)]
    return rows, columns


def check_counts(counts: Sequence[int], batch: int, time: int) -> None:
    if len(counts) != batch or max(counts) > time:
        raise ValueError(
            f"tokens must be the [{len(counts)}, {max(counts)}] that feed() was given, or wider; got [{batch}, {time}]"
        )


class CacheFull(RuntimeError):
    """The cache has no room for the tokens of this pass. Its contents have not changed."""
