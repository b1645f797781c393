"""A paged cache of 8- or 4-bit integers: `PagedKVCache`'s blocks, with `QuantizedKVCache`'s contents.

Who owns which block is one question, what a block holds another: all of the first is inherited, and this file answers
the second. Codes, and a scale and a minimum for every token and head, lie in blocks of the same numbers; a pass writes
its new tokens as codes and reads back what attention wants, dequantized.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.kvcache.grouped import grouped_attention
from labsupport.kvcache.paged import PagedKVCache
from labsupport.kvcache.paged_batch import PagedBatch
from labsupport.kvcache.quantized import dequantize_heads, hadamard, quantize_heads
from labsupport.lm import Llama
from labsupport.numerics.packing import packed_size


class QuantizedPagedKVCache(PagedKVCache):
    """`PagedKVCache` in ``bits`` = 8 or 4; keys, values and queries are rotated as QuaRot does (quantized.py)."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        enable_prefix_caching: bool = True,
        bits: int = 8,
    ) -> None:
        if bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8; got {bits}")
        self.bits = bits
        super().__init__(num_layers, num_blocks, block_size, num_kv_heads, head_dim, dtype, device,
                         enable_prefix_caching)  # fmt: skip

    @classmethod
    def for_model(
        cls, model: Llama, num_blocks: int, block_size: int = 16, enable_prefix_caching: bool = True, bits: int = 8
    ) -> Self:
        config, weight = model.config, model.embed_tokens.weight
        assert config.head_dim is not None
        sizes = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        return cls(*sizes, weight.dtype, weight.device, enable_prefix_caching, bits)

    def batch(self, seq_ids: Sequence[Hashable]) -> QuantizedPagedBatch:
        return QuantizedPagedBatch(self, seq_ids)

    def read(
        self, seq_id: Hashable, layer_index: int
    ) -> tuple[Float[Tensor, "num_kv_heads length head_dim"], Float[Tensor, "num_kv_heads length head_dim"]]:
        """Copies of a sequence's keys and values in one layer, dequantized and turned back."""
        sequence = self._get(seq_id)
        table = torch.tensor(sequence.block_table, dtype=torch.int64, device=self.device)
        key, value = (self._dequantized(which, layer_index, table) for which in range(2))
        return self.turn(key[:, : sequence.length]), self.turn(value[:, : sequence.length])

    def turn(self, x: Float[Tensor, "*rows head_dim"]) -> Float[Tensor, "*rows head_dim"]:
        """x H, in pieces where head_dim is no power of two. H is symmetric: turning twice changes nothing."""
        return (x.unflatten(-1, (-1, len(self.hadamard))) @ self.hadamard.to(x.dtype)).flatten(-2)

    def _allocate(self, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (self.num_layers, 2, self.num_blocks, self.num_kv_heads, self.block_size)
        self.codes = torch.zeros(*shape, packed_size(self.head_dim, self.bits), dtype=torch.uint8, device=device)
        self.scales = torch.zeros(*shape, 2, dtype=torch.float16, device=device)  # scale and minimum
        self.hadamard = hadamard(self.head_dim & -self.head_dim).to(device)
        self.dtype, self.device = dtype, self.codes.device

    def _storage(self) -> list[Tensor]:
        return [self.codes, self.scales]

    def _dequantized(self, which: int, layer_index: int, table: Tensor) -> Float[Tensor, "heads slots head_dim"]:
        codes, scales = (each[layer_index, which][table] for each in self._storage())  # [blocks, heads, slots, .]
        held = dequantize_heads(codes, scales, self.bits, self.head_dim).to(self.dtype)
        return held.transpose(0, 1).flatten(1, 2)


class QuantizedPagedBatch(PagedBatch):
    """The model's side of `QuantizedPagedKVCache`."""

    cache: QuantizedPagedKVCache

    @torch.no_grad()
    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        """All tokens are attended to as they are held, the newest too, so chunked and whole prefill agree."""
        step, cache = self._plan(query.shape[1]), self.cache
        self.store(layer_index, key, value)
        held = []
        for which in range(2):
            codes, scales = (step.gather(each[layer_index, which], len(query)) for each in (cache.codes, cache.scales))
            held.append(dequantize_heads(codes, scales, cache.bits, cache.head_dim).to(cache.dtype))
        context = grouped_attention(cache.turn(query), held[0], held[1], step.mask, step.from_empty)
        return cache.turn(context)

    @torch.no_grad()
    def store(self, layer_index: int, key: Tensor, value: Tensor) -> None:
        step = self._plan(key.shape[1])
        for which, new in enumerate((key, value)):
            codes, scales = quantize_heads(self.cache.turn(new), self.cache.bits)
            step.store(self.cache.codes[layer_index, which], codes)
            step.store(self.cache.scales[layer_index, which], scales)
