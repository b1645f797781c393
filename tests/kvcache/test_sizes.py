"""Bytes of caches and weights against real tensors and published models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.kvcache.sizes import (
    PRESETS,
    kv_bytes_per_token,
    kv_cache_bytes,
    parameters,
    weight_bytes,
)
from labsupport.lm.cache import ConcatCache
from labsupport.lm.config import LlamaConfig
from labsupport.lm.model import Llama

GIB = 2**30
LLAMA_7B = PRESETS["Llama 2 7B"].config
SMALL = LlamaConfig(50, 32, 44, 3, 4, 2)
CONFIGS = [
    SMALL,
    LlamaConfig(50, 32, 44, 2, 4, 4),
    LlamaConfig(50, 32, 44, 2, 4, 1),
    LlamaConfig(50, 32, 44, 2, 4, 2, 6),
]


@settings(max_examples=100, deadline=None)
@given(*[st.integers(1, 5) for _ in range(5)], st.sampled_from([4, 2, 1]))
def test_cache_bytes_are_those_of_the_tensors(batch, seq_len, layers, kv_heads, head_dim, width):
    dtype = {4: torch.float32, 2: torch.bfloat16, 1: torch.int8}[width]
    tensors = [torch.empty(batch, kv_heads, seq_len, head_dim, dtype=dtype) for _ in range(2 * layers)]
    assert kv_cache_bytes(batch, seq_len, layers, kv_heads, head_dim, width) == sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("config", CONFIGS)
def test_cache_bytes_are_those_of_a_real_cache(config):
    cache = ConcatCache(config.num_layers)
    with torch.no_grad():
        Llama(config)(torch.zeros(3, 7, dtype=torch.int64), cache)
    held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert held == 3 * 7 * kv_bytes_per_token(config, 4)
    assert held == kv_cache_bytes(3, 7, config.num_layers, config.num_kv_heads, config.head_dim, 4)


def test_every_layer_and_every_sequence_has_its_keys_and_values():
    sizes = [kv_cache_bytes(1, 2048, 32, 32, 128, width) / GIB for width in (4, 2, 1)]
    assert sizes == [2.0, 1.0, 0.5]
    assert kv_cache_bytes(16, 2048, 32, 32, 128) == 16 * GIB
    assert kv_bytes_per_token(LLAMA_7B) == 512 * 1024
    assert kv_cache_bytes(1, 2048, 1, 32, 128, 4) / GIB == 0.03125 * 2  # one layer: what the document calls all


def test_bytes_of_one_token_and_layer():
    assert [kv_cache_bytes(1, 1, 1, heads, 128, 4) for heads in (32, 8, 1)] == [32768, 8192, 1024]


def test_cache_bytes_are_exact_integers_at_any_size():
    assert kv_cache_bytes(10**9 + 7, 10**9 + 9, 127, 8, 128) == 4 * (10**9 + 7) * (10**9 + 9) * 127 * 8 * 128
    assert kv_cache_bytes(10**9 + 7, 10**9 + 9, 127, 8, 128, 2.0) == kv_cache_bytes(10**9 + 7, 10**9 + 9, 127, 8, 128)
    int4 = kv_cache_bytes(1, 3, 1, 1, 1, 0.5)
    assert int4 == 3 and type(int4) is int
    assert kv_cache_bytes(1, 1, 1, 1, 1, 0.6) == 2  # rounded up
    assert kv_cache_bytes(0, 9, 1, 1, 2) == kv_cache_bytes(9, 0, 1, 1, 2) == 0
    assert kv_cache_bytes(torch.tensor(2), 3, 1, 1, 2) == 48


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    preset = PRESETS[name]
    assert sum(parameters(preset.config).values()) == preset.published_parameters
    assert preset.source == f"https://huggingface.co/{preset.hub_name}"
    assert weight_bytes(preset.config) == 2 * preset.published_parameters


def test_llama_2_has_grouped_queries_at_70b_and_not_below():
    heads = {name: (p.config.num_heads, p.config.num_kv_heads) for name, p in PRESETS.items()}
    assert heads["Llama 2 7B"] == (32, 32) and heads["Llama 2 13B"] == (40, 40) and heads["Llama 2 70B"] == (64, 8)
    assert heads["Llama 3 8B"] == heads["Mistral 7B"] == (32, 8) and heads["Qwen2.5 7B"] == (28, 4)
    kib = {name: kv_bytes_per_token(p.config) / 1024 for name, p in PRESETS.items()}
    assert kib["Llama 2 7B"] == 512 and kib["Llama 2 70B"] == 320 and kib["Llama 3 8B"] == 128
    assert kv_cache_bytes(1, 1, 80, 64, 128) / 1024 == 2560  # the 70B, had it a key head for each query head


def test_falcon_has_one_kv_head_at_7b_and_eight_at_40b():
    small, large = PRESETS["Falcon 7B"].config, PRESETS["Falcon 40B"].config
    assert (small.num_heads, small.num_kv_heads, small.head_dim) == (71, 1, 64)
    assert (large.num_heads, large.num_kv_heads, large.head_dim) == (128, 8, 64)
    assert kv_bytes_per_token(small) == 8 * 1024 and kv_bytes_per_token(large) == 120 * 1024


@pytest.mark.parametrize(("call", "message"), [
    (lambda: kv_cache_bytes(-1, 1, 1, 1, 1), "batch_size must be at least 0; got -1"),
    (lambda: kv_cache_bytes(1, 2.5, 1, 1, 1),  # type: ignore[arg-type]
     "seq_len must be an integer; got 2.5"),
    (lambda: kv_cache_bytes(1, 1, 0, 1, 1), "num_layers must be at least 1; got 0"),
    (lambda: kv_cache_bytes(1, 1, 1, 0, 1), "num_kv_heads must be at least 1; got 0"),
    (lambda: kv_cache_bytes(1, 1, 1, 1, 0), "head_dim must be at least 1; got 0"),
    (lambda: kv_cache_bytes(1, 1, 1, 1, 1, 0), "bytes_per_element must be a positive number .* got 0"),
    (lambda: kv_cache_bytes(1, 1, 1, 1, 1, float("nan")), "bytes_per_element must be a positive number"),
    (lambda: weight_bytes(SMALL, -2), "bytes_per_weight must be a positive number"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
