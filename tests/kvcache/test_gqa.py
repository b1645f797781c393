"""One attention for MHA, GQA and MQA: causality, and every cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from labsupport.kvcache import GroupedQueryAttention, KVCache, PagedBatch, PagedKVCache
from labsupport.lm import Cache, ConcatCache, LlamaConfig
from labsupport.lm.model import Attention, Llama

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}


def paged(kv_heads: int) -> Cache:
    cache = PagedKVCache(1, 12, 4, kv_heads, 8)
    cache.add_sequence("a")
    cache.add_sequence("b")
    return PagedBatch(cache, ["a", "b"])


CACHES: dict[str, Callable[[int], Cache]] = {
    "contiguous": lambda kv_heads: KVCache(1, 2, 10, kv_heads, 8),
    "paged": paged,
    "concat": lambda kv_heads: ConcatCache(1),
}


def attention(num_kv_heads: int) -> GroupedQueryAttention:
    torch.manual_seed(0)
    return GroupedQueryAttention(48, 6, num_kv_heads).requires_grad_(False)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 6])
def test_later_tokens_do_not_change_earlier_outputs(num_kv_heads: int) -> None:
    module, x = attention(num_kv_heads), torch.randn(2, 10, 48)
    changed = x.clone()
    changed[:, 5:] = torch.randn(2, 5, 48)
    torch.testing.assert_close(module(x)[:, :5], module(changed)[:, :5])
    assert (module(x)[:, 5:] - module(changed)[:, 5:]).abs().min(dim=-1).values.max() > 0


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("chunks", [[1] * 10, [10], [4, 1, 5]])
def test_token_by_token_with_a_cache_is_the_whole_pass(num_kv_heads: int, kind: str, chunks: list[int]) -> None:
    module, x = attention(num_kv_heads), torch.randn(2, 10, 48, generator=torch.Generator().manual_seed(1))
    cache = CACHES[kind](num_kv_heads)
    parts = [module(part, cache) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), module(x), **CLOSE)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_against_the_formula_written_out(num_kv_heads: int) -> None:
    module, x = attention(num_kv_heads), torch.randn(1, 7, 48)
    query, key, value = module.q_proj(x)[0], module.k_proj(x)[0], module.v_proj(x)[0]
    outputs = []
    for head in range(6):
        shared = head // (6 // num_kv_heads)
        q, k, v = query[:, 8 * head :][:, :8], key[:, 8 * shared :][:, :8], value[:, 8 * shared :][:, :8]
        rows = []
        for i in range(7):
            scores = torch.stack([turn(q[i], i) @ turn(k[j], j) / 8**0.5 for j in range(i + 1)])
            rows.append(scores.softmax(0) @ v[: i + 1])
        outputs.append(torch.stack(rows))
    torch.testing.assert_close(module(x)[0], module.o_proj(torch.cat(outputs, dim=-1)), **CLOSE)


def turn(x: torch.Tensor, position: int) -> torch.Tensor:
    pairs = torch.complex(x[:4], x[4:])
    angles = position * 10_000.0 ** (-torch.arange(4) / 4)
    turned = pairs * torch.polar(torch.ones(4), angles)
    return torch.cat((turned.real, turned.imag))


def test_it_is_the_attention_of_the_language_model() -> None:
    config = LlamaConfig(10, 48, 64, 1, 6, 2)
    theirs, ours = Attention(config, 0), attention(2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 48)
    torch.testing.assert_close(ours(x), theirs(x, Llama(config).rotary(torch.arange(5)[None])), **CLOSE)


def test_parameters_and_bytes_follow_the_heads() -> None:
    for kv_heads, kind in ((6, "MHA"), (2, "GQA"), (1, "MQA")):
        module = attention(kv_heads)
        assert sum(p.numel() for p in module.parameters()) == 2 * 48 * 48 + 2 * 48 * kv_heads * 8
        assert module.kv_bytes_per_token(2) == 2 * kv_heads * 8 * 2
        assert KVCache(1, 1, 1, kv_heads, 8, dtype=torch.float16).nbytes == module.kv_bytes_per_token(2)
        assert kind in repr(module)


def test_gradients_flow_without_a_cache() -> None:
    module = GroupedQueryAttention(48, 6, 2)
    module(torch.randn(1, 4, 48)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_cache_of_many_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="cache must be for 1 layer; got one for 4"):
        attention(2)(torch.randn(2, 3, 48), KVCache(4, 2, 8, 2, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((48, 6, 4), "num_heads must be a multiple of num_kv_heads; got 6 and 4"),
        ((50, 6, 2), "hidden_size must be a multiple of num_heads; got 50 and 6"),
        ((18, 6, 2), "head_dim must be even"),
        ((48, 6, 0), "num_kv_heads must be at least 1; got 0"),
    ],
)
def test_wrong_heads_are_named(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupedQueryAttention(*arguments)
