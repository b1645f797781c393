from .allocator import BlockAllocator, chain_hash
from .attention import block_by_block_attention, paged_attention
from .batch import PagedBatch
from .contiguous import KVCache
from .convert import convert_to_gqa, expand_kv_heads, random_batches, to_grouped, uptrain
from .cost import (
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
from .generation import WithFreshCache, generate, make_cache, next_token_logits, prefill
from .gqa import GroupedQueryAttention
from .grouped import CacheFull, grouped_attention
from .paged import PagedKVCache
from .quantized import QuantizedKVCache, QuantizedPagedKVCache
from .sizes import PRESETS, kv_bytes_per_token, kv_cache_bytes, weight_bytes
from .tables import BlockTables

__all__ = [
    "PRESETS",
    "BlockAllocator",
    "BlockTables",
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
    "to_grouped",
    "uptrain",
    "weight_bytes",
]
