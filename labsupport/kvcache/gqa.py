"""Causal attention with any number of key-value heads: one class for MHA, GQA and MQA.

With as many key-value heads as query heads this is multi-head attention (Vaswani et al. 2017, arXiv 1706.03762), with
one it is multi-query attention (Shazeer 2019, arXiv 1911.02150), and with any number between it is grouped-query
attention (Ainslie et al. 2023, arXiv 2305.13245). The number is fixed when a model is trained, or changed afterwards by
`convert_to_gqa` and more training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labsupport.lm import Cache
from labsupport.lm.model import rotary_embedding, rotate


class GroupedQueryAttention(nn.Module):
    """``attention(x)`` is causal, with rotary positions; ``attention(x, cache)`` continues from what the cache holds.

    The cache must be for a single layer: ``KVCache(1, batch, capacity, num_kv_heads, head_dim)``, or a
    ``PagedBatch(PagedKVCache(1, ...), ids)``. The projections are named as in `labsupport.lm.model.Attention`.

    Args:
        num_kv_heads: None for as many as ``num_heads``.
        head_dim: None for ``hidden_size / num_heads``.

    Raises:
        ValueError: the numbers of heads do not divide.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_theta: float = 10_000.0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for name, size in (("hidden_size", hidden_size), ("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        if num_heads % num_kv_heads:
            raise ValueError(f"num_heads must be a multiple of num_kv_heads; got {num_heads} and {num_kv_heads}")
        if head_dim is None and hidden_size % num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads; got {hidden_size} and {num_heads}")
        head_dim = hidden_size // num_heads if head_dim is None else head_dim
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary embedding turns pairs); got {head_dim}")
        self.hidden_size, self.num_heads, self.num_kv_heads, self.head_dim = (
            hidden_size, num_heads, num_kv_heads, head_dim)  # fmt: skip
        self.rope_theta = rope_theta
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self, x: Float[Tensor, "batch time hidden"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time hidden"]:
        """
        Raises:
            ValueError: ``x`` has another shape, or the cache is for several layers.
        """
        if x.dim() != 3 or x.shape[-1] != self.hidden_size or x.shape[1] == 0:
            raise ValueError(f"x must have shape [batch, time, {self.hidden_size}]; got {tuple(x.shape)}")
        if getattr(cache, "num_layers", 1) != 1:
            # this module begins and ends the pass: with several layers, the length would advance once for each of them
            raise ValueError(f"cache must be for 1 layer; got one for {getattr(cache, 'num_layers', 1)}")
        batch, time, _ = x.shape
        positions = torch.arange(time)[None] if cache is None else cache.positions(batch, time)
        rotary = rotary_embedding(positions.to(x.device), self.head_dim, self.rope_theta, x.dtype)
        heads = (batch, time, -1, self.head_dim)
        query = rotate(self.q_proj(x).view(heads).transpose(1, 2), rotary)  # [batch, num_heads, time, head_dim]
        key = rotate(self.k_proj(x).view(heads).transpose(1, 2), rotary)  # [batch, num_kv_heads, time, head_dim]
        value = self.v_proj(x).view(heads).transpose(1, 2)
        if cache is None:
            context = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            context = cache.attend(0, query, key, value)
            cache.advance(time)
        return self.o_proj(context.transpose(1, 2).reshape(batch, time, -1))

    def kv_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Bytes of one token in the cache of this layer: a key and a value for each key-value head."""
        return 2 * self.num_kv_heads * self.head_dim * bytes_per_element

    def extra_repr(self) -> str:
        kind = {self.num_heads: "MHA", 1: "MQA"}.get(self.num_kv_heads, "GQA")
        return f"{kind}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}"
