"""Chapter 3, the KV cache: one idea a file. Names below are imported when first used, so this import is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labsupport.lazy import lazy_names

if TYPE_CHECKING:
    from labsupport.kvcache.allocator import BlockAllocator, chain_hash
    from labsupport.kvcache.attention import GroupedQueryAttention
    from labsupport.kvcache.block_attention import block_by_block_attention, paged_attention
    from labsupport.kvcache.contiguous import KVCache
    from labsupport.kvcache.convert import convert_to_gqa, expand_kv_heads, random_batches, to_grouped, uptrain
    from labsupport.kvcache.cost import (
        Cost,
        Estimate,
        Machine,
        decode_seconds,
        forward_cost,
        generation_cost,
        generation_seconds,
        measure_machine,
        next_token_cost,
        roofline,
    )
    from labsupport.kvcache.generation import generate, make_cache, next_token_logits, prefill
    from labsupport.kvcache.grouped import CacheFull, grouped_attention
    from labsupport.kvcache.paged import PagedKVCache
    from labsupport.kvcache.paged_batch import PagedBatch
    from labsupport.kvcache.paged_quantized import QuantizedPagedKVCache
    from labsupport.kvcache.quantized import QuantizedKVCache, WithFreshCache
    from labsupport.kvcache.sizes import PRESETS, kv_bytes_per_token, kv_cache_bytes, sequences_that_fit, weight_bytes

_SUBMODULES = {
    "allocator": (
        "BlockAllocator",
        "chain_hash",
    ),
    "attention": ("GroupedQueryAttention",),
    "contiguous": ("KVCache",),
    "convert": (
        "convert_to_gqa",
        "expand_kv_heads",
        "random_batches",
        "to_grouped",
        "uptrain",
    ),
    "cost": (
        "Cost",
        "Estimate",
        "Machine",
        "decode_seconds",
        "forward_cost",
        "generation_cost",
        "generation_seconds",
        "measure_machine",
        "next_token_cost",
        "roofline",
    ),
    "generation": (
        "generate",
        "make_cache",
        "next_token_logits",
        "prefill",
    ),
    "grouped": (
        "CacheFull",
        "grouped_attention",
    ),
    "paged": ("PagedKVCache",),
    "paged_quantized": ("QuantizedPagedKVCache",),
    "paged_batch": ("PagedBatch",),
    "block_attention": (
        "block_by_block_attention",
        "paged_attention",
    ),
    "quantized": (
        "QuantizedKVCache",
        "WithFreshCache",
    ),
    "sizes": (
        "PRESETS",
        "kv_bytes_per_token",
        "kv_cache_bytes",
        "sequences_that_fit",
        "weight_bytes",
    ),
}
_SUBMODULE_OF = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}

__all__ = [
    "PRESETS",
    "BlockAllocator",
    "CacheFull",
    "Cost",
    "Estimate",
    "GroupedQueryAttention",
    "KVCache",
    "Machine",
    "PagedBatch",
    "PagedKVCache",
    "QuantizedKVCache",
    "QuantizedPagedKVCache",
    "WithFreshCache",
    "block_by_block_attention",
    "chain_hash",
    "convert_to_gqa",
    "decode_seconds",
    "expand_kv_heads",
    "forward_cost",
    "generate",
    "generation_cost",
    "generation_seconds",
    "grouped_attention",
    "kv_bytes_per_token",
    "kv_cache_bytes",
    "make_cache",
    "measure_machine",
    "next_token_cost",
    "next_token_logits",
    "paged_attention",
    "prefill",
    "random_batches",
    "roofline",
    "sequences_that_fit",
    "to_grouped",
    "uptrain",
    "weight_bytes",
]

__getattr__, __dir__ = lazy_names(globals(), _SUBMODULE_OF)
