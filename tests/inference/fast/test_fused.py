"""The compiled pass against the readable one, and its parts against PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labsupport.inference.fast.fused import FusedLlama
from labsupport.inference.fast.merged import PackedLinear, SideBySide, merge
from labsupport.inference.packed import PackedBatch
from labsupport.kvcache import PagedKVCache, QuantizedPagedKVCache
from labsupport.lm import Llama, LlamaConfig
from labsupport.lm.model import rotary_embedding, rotate
from labsupport.quantization import (
    DynamicQuantizedLinear,
    Int4WeightLinear,
    Int8WeightLinear,
    gptq_quantize,
    rtn_quantize,
)
from labsupport.quantization.fast.probes import has_numba

needs_numba = pytest.mark.skipif(not has_numba(), reason="Numba is not installed")
CONFIGS = [
    LlamaConfig(97, 48, 80, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8),
    LlamaConfig(97, 32, 40, num_layers=2, num_heads=2, num_kv_heads=2, tie_embeddings=False),
    LlamaConfig(97, 40, 64, num_layers=1, num_heads=5, num_kv_heads=1, head_dim=6),  # no power of two, odd group
]


def linears(sizes: tuple[int, ...] = (24, 8, 8), inputs: int = 32) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(inputs, size, bias=False) for size in sizes]


def int4(linear: nn.Linear, group_size: int = 16) -> Int4WeightLinear:
    return Int4WeightLinear(rtn_quantize(linear.weight, bits=4, group_size=group_size))


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "make", [lambda x: x, DynamicQuantizedLinear.from_float, Int8WeightLinear.from_float, int4],
    ids=["float", "W8A8", "int8", "int4"],
)  # fmt: skip
def test_merged_layers_compute_what_each_did(make: Any, pack: bool, rows: int) -> None:
    each = [make(linear) for linear in linears()]
    x = torch.randn(rows, 32)
    with torch.no_grad():
        wanted = torch.cat([linear(x) for linear in each], dim=-1)
        merged = merge(each, pack)
        assert not isinstance(merged, SideBySide)
        torch.testing.assert_close(merged(x), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat([linear(x) for linear in each], dim=-1), wanted, atol=1e-5, rtol=1e-5)


def test_a_merged_float_weight_is_held_once() -> None:
    each = linears()
    before = [linear.weight.clone() for linear in each]
    merged: Any = merge(each)
    storage = {linear.weight.untyped_storage().data_ptr() for linear in each}
    assert storage == {merged.weight.untyped_storage().data_ptr()}
    assert all(torch.equal(linear.weight, old) for linear, old in zip(each, before, strict=True))


def test_what_cannot_be_merged_stays_side_by_side() -> None:
    first, second, third = linears()
    x = torch.randn(5, 32)
    sorted_otherwise = Int4WeightLinear(
        gptq_quantize(
            second.weight, torch.diag(torch.arange(1.0, 33)), group_size=16, act_order=True, static_groups=False
        )
    )
    for each in (
        [first, int4(second)],
        [int4(first), int4(second, 8)],
        [nn.Linear(32, 8), third],
        [int4(first), sorted_otherwise],
    ):
        merged = merge(each)  # type: ignore[arg-type]
        assert isinstance(merged, SideBySide)
        torch.testing.assert_close(merged(x), torch.cat([linear(x) for linear in each], dim=-1))


def test_a_packed_weight_is_used_on_cpus_in_float32_only() -> None:
    assert not PackedLinear.supports(torch.ones(2, 2, dtype=torch.bfloat16))
    assert not PackedLinear.supports(torch.ones(2, 2, device="meta"))


@needs_numba
@pytest.mark.parametrize("config", CONFIGS, ids=["grouped", "multi-head", "one-kv-head"])
@pytest.mark.parametrize("pack, bits", [(False, None), (True, None), (False, 8)])
def test_the_pass_is_that_of_the_model(config: LlamaConfig, pack: bool, bits: int | None) -> None:
    torch.manual_seed(1)
    model = Llama(config).eval()
    for weight in model.parameters():
        weight.data.normal_(std=0.3)  # RMSNorm's weights too: all ones would hide a mistake
    fused = FusedLlama(copy.deepcopy(model), pack)
    texts = {name: torch.randint(97, (length,)).tolist() for name, length in zip("abcd", (1, 17, 9, 26), strict=True)}
    caches: list[tuple[PagedKVCache, list[torch.Tensor]]] = []
    for run in range(2):
        sizes = (model, 40, 5, False)
        cache = PagedKVCache.for_model(*sizes) if bits is None else QuantizedPagedKVCache.for_model(*sizes, bits=bits)
        outs = []
        with torch.no_grad():
            for decodes, chunks in (
                ([], [("b", texts["b"][:16]), ("c", texts["c"][:4])]),
                ([("a", texts["a"][0]), ("b", texts["b"][16])], [("c", texts["c"][4:]), ("d", texts["d"][:11])]),
                ([("a", 5), ("b", 7), ("c", 3)], [("d", texts["d"][11:])]),
                ([(name, 11) for name in "abcd"], []),
            ):
                for name, _ in (*decodes, *chunks):
                    if name not in cache.sequences:
                        cache.add_sequence(name)
                batch = PackedBatch(cache, decodes, chunks)  # type: ignore[arg-type]
                outs.append(fused.hidden_states(batch) if run else model.hidden_states(batch.tokens, batch)[0])
                cache.check_integrity()
        caches.append((cache, outs))
    for mine, wanted in zip(caches[1][1], caches[0][1], strict=True):
        torch.testing.assert_close(mine, wanted, atol=2e-4, rtol=2e-4)
    for mine, wanted in zip(caches[1][0]._storage(), caches[0][0]._storage(), strict=True):
        # a sum in another order may move a number over the edge between two codes, or a scale over that of a half
        allowed = {torch.float32: (1e-4, 1e-4), torch.float16: (1e-3, 1e-3), torch.uint8: (1.01, 0.0)}
        atol, rtol = allowed[wanted.dtype]
        torch.testing.assert_close(mine.float(), wanted.float(), atol=atol, rtol=rtol)


@needs_numba
def test_it_is_for_cpus_and_float32() -> None:
    model = Llama(CONFIGS[0])
    assert FusedLlama.supports(model)
    assert not FusedLlama.supports(model.to(torch.bfloat16))


@needs_numba
@pytest.mark.parametrize("window", [100, 9, 3, 1])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_decode_attention_is_softmax_attention(scale: float, window: int) -> None:
    from labsupport.inference.fast.numba_ops import decode_attention

    torch.manual_seed(2)
    heads, kv_heads, head_dim, block_size = 6, 2, 16, 8
    keys, values = torch.randn(2, 20, kv_heads, block_size, head_dim) * scale
    lengths, tables = [1, 8, 9, 23], [[3, 0, 0], [5, 0, 0], [7, 1, 0], [2, 19, 11]]
    seen = [max(length - window, 0) for length in lengths]
    query, out = torch.randn(4, heads * head_dim), torch.empty(4, heads * head_dim)
    arrays = (query, keys, values, torch.tensor(tables), torch.tensor(seen), torch.tensor(lengths), out)
    decode_attention(*(each.numpy() for each in arrays), 0, 4)  # type: ignore[call-arg]
    for row, (first, length, table) in enumerate(zip(seen, lengths, tables, strict=True)):
        key, value = (each[table].transpose(0, 1).flatten(1, 2)[None, :, first:length] for each in (keys, values))
        own = query[row].view(1, heads, 1, head_dim)
        wanted = F.scaled_dot_product_attention(own, key, value, enable_gqa=True)
        torch.testing.assert_close(out[row], wanted.flatten(), atol=3e-6 * scale + 1e-6, rtol=1e-5)


@needs_numba
def test_nan_in_a_free_slot_does_not_spread() -> None:
    from labsupport.inference.fast.numba_ops import decode_attention

    keys = np.full((2, 1, 4, 4), np.nan, np.float32)
    keys[1, 0, :3] = 1
    out, query = np.empty((1, 4), np.float32), np.ones((1, 4), np.float32)
    decode_attention(query, keys, keys, np.array([[1]]), np.array([0]), np.array([3]), out, 0, 1)
    np.testing.assert_allclose(out, 1, rtol=1e-6)
    decode_attention(query, keys, keys, np.array([[1]]), np.array([0]), np.array([4]), out, 0, 1)
    assert np.isnan(out).all(), "a broken key that is in use must show"


@needs_numba
def test_rotation_and_norm() -> None:
    from labsupport.inference.fast.numba_ops import add_and_norm, rotate_and_store

    torch.manual_seed(3)
    heads, kv_heads, head_dim, block_size, tokens = 4, 2, 8, 4, 5
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim)
    positions = torch.tensor([[0, 3, 7, 100, 5]])
    cos, sin = rotary_embedding(positions, head_dim, 10_000.0)
    slots = [4, 5, 6, 15, 0]
    parts = qkv.clone().view(1, tokens, -1, head_dim).transpose(1, 2)
    query, key = (rotate(part, (cos, sin)) for part in (parts[:, :heads], parts[:, heads : heads + kv_heads]))
    keys, values = torch.zeros(2, 4, kv_heads, block_size, head_dim)
    arrays = (qkv, cos[0, 0], sin[0, 0], torch.tensor(slots))
    turned = [each.numpy() for each in arrays]
    rotate_and_store(*turned, heads, keys.numpy(), values.numpy())  # type: ignore[call-arg]
    torch.testing.assert_close(qkv[:, : heads * head_dim], query[0].transpose(0, 1).flatten(1))
    for token, slot in enumerate(slots):
        torch.testing.assert_close(keys[slot // 4, :, slot % 4], key[0, :, token])
        torch.testing.assert_close(values[slot // 4, :, slot % 4], parts[0, heads + kv_heads :, token])

    x, y, weight, out = torch.randn(3, 10), torch.randn(3, 10), torch.rand(10), torch.empty(3, 10)
    wanted = F.rms_norm(x + y, (10,), weight, 1e-3)
    total = x + y
    add_and_norm(x.numpy(), y.numpy(), weight.numpy(), 1e-3, out.numpy())
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(x, total)
