"""Costs against torch's own FLOP counter, against a count of every multiply-add, and against models of other makers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from labsupport.kvcache.cost import (
    Cost,
    Machine,
    decode_seconds,
    forward_cost,
    generation_cost,
    generation_seconds,
    measure_machine,
    next_token_cost,
    roofline,
)
from labsupport.kvcache.sizes import (
    PRESETS,
    DecoderConfig,
    kv_bytes_per_token,
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
    LlamaConfig(50, 32, 44, 2, 4, 4, tie_embeddings=False),  # multi-head
    LlamaConfig(50, 32, 44, 2, 4, 1),  # multi-query
    LlamaConfig(50, 32, 44, 2, 4, 2, head_dim=6),  # heads narrower than hidden / heads
]


@st.composite
def configs(draw):
    kv_heads = draw(st.integers(1, 3))
    heads, head_dim = kv_heads * draw(st.integers(1, 3)), 2 * draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, 12)) for _ in range(3)]
    return LlamaConfig(*sizes, draw(st.integers(1, 3)), heads, kv_heads, head_dim, tie_embeddings=draw(st.booleans()))


# FLOPs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("batch", "past", "new"), [(1, 0, 1), (1, 0, 7), (3, 0, 5), (1, 6, 1), (2, 6, 1), (2, 5, 4)])
def test_flops_are_those_that_torch_counts_in_a_real_model(config, batch, past, new):
    """torch counts matrix products only, and its plain attention computes the full square."""
    torch.manual_seed(0)
    model = Llama(config)
    tokens = torch.randint(config.vocab_size, (batch, past + new))
    cache = ConcatCache(config.num_layers) if past else None
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if past:
            model(tokens[:, :past], cache)
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, past:], cache)
    cost = forward_cost(config, new, past, batch, all_logits=True, causal=False)
    assert cost.flops == counter.get_total_flops()


def multiply_adds(config, positions):
    """Of tokens at those positions, by loops over what each one is multiplied with."""
    h, d, counted = config.hidden_size, config.head_dim, dict.fromkeys(("projections", "attention", "mlp", "head"), 0)
    for position in positions:
        for _layer in range(config.num_layers):
            for _query_head in range(config.num_heads):
                counted["projections"] += h * d  # q
                for _key in range(position + 1):  # itself and those before it
                    counted["attention"] += d  # the score
                    counted["attention"] += d  # the weighted value
            for _kv_head in range(config.num_kv_heads):
                counted["projections"] += h * d + h * d  # k, v
            for _output in range(h):
                counted["projections"] += config.num_heads * d  # o
            for _unit in range(config.intermediate_size):
                counted["mlp"] += h + h + h  # gate, up, and its column of down
    for _word in range(config.vocab_size):
        counted["head"] += h  # of the last position
    return counted


@settings(max_examples=60, deadline=None)
@given(configs(), st.integers(1, 6), st.integers(0, 6), st.integers(1, 3))
def test_every_multiply_add_counts_two(config, new, past, batch):
    cost = forward_cost(config, new, past, batch)
    for part, count in multiply_adds(config, range(past, past + new)).items():
        assert getattr(cost, part) == 2 * batch * count, part


@settings(max_examples=60, deadline=None)
@given(configs(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_prefill_in_any_chunks_costs_the_same_flops(config, first, second, batch):
    whole, rest = forward_cost(config, first + second, 0, batch), forward_cost(config, second, first, batch)
    chunks = forward_cost(config, first, 0, batch) + rest
    assert chunks.flops - chunks.head == whole.flops - whole.head
    assert chunks.weight_bytes > whole.weight_bytes  # the weights are read twice


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_a_generation_in_closed_form(config, new, prompt, batch, causal):
    parts, options = parameters(config), {"batch_size": batch, "causal": causal}
    linear, wide = parts["attention"] + parts["mlp"], config.num_layers * config.num_heads * config.head_dim
    table, last = config.vocab_size * config.hidden_size, prompt + new - 1

    def triangle(n: int) -> int:
        return n * (n + 1) // 2

    def square(n: int) -> int:  # 1 + 4 + ... + n²
        return n * (n + 1) * (2 * n + 1) // 6

    cached = generation_cost(config, new, prompt, **options)
    pairs = triangle(last) if causal else prompt**2 + triangle(last) - triangle(prompt)
    assert cached.flops == 2 * batch * (linear * last + 2 * wide * pairs + table * new)

    again = generation_cost(config, new, prompt, cached=False, **options)
    tokens, squares = triangle(last) - triangle(prompt - 1), square(last) - square(prompt - 1)
    pairs = (squares + tokens) // 2 if causal else squares
    assert again.flops == 2 * batch * (linear * tokens + 2 * wide * pairs + table * new)
    assert again.kv_bytes == 0 and cached.kv_bytes > 0


def test_next_token_with_a_cache_takes_one_token_through_the_model():
    assert next_token_cost(SMALL, 9, 2) == forward_cost(SMALL, 1, 8, 2)
    assert next_token_cost(SMALL, 9, 2, cached=False) == forward_cost(SMALL, 9, 0, 2, cached=False)
    assert generation_cost(SMALL, 1, 9, 2) == forward_cost(SMALL, 9, 0, 2)


def test_the_ratio_of_flops_is_near_half_the_length_and_no_260():
    n = 2048
    without, with_cache = (generation_cost(LLAMA_7B, n, cached=cached) for cached in (False, True))
    for part in ("projections", "mlp"):  # what is linear in the tokens: (1 + 2 + ... + n) / n
        assert getattr(without, part) / getattr(with_cache, part) == (n + 1) / 2 == 1024.5
    assert without.attention / with_cache.attention == pytest.approx((n + 2) / 3)
    body = [cost.flops - cost.head for cost in (without, with_cache)]
    assert round(body[0] / body[1]) == 1011
    square = [generation_cost(LLAMA_7B, n, cached=cached, causal=False) for cached in (False, True)]
    body = [cost.flops - cost.head for cost in square]
    assert round(body[0] / body[1]) == 1038
    assert [round(flops / 1e12, 1) for flops in body] == [28677.9, 27.6]
    assert [round(flops / 32 / 1e12, 4) for flops in body] == [896.1843, 0.8633]


def test_scores_and_values_both_count_with_o_projection_and_mlp():
    h, t = 4096, 300
    cost = next_token_cost(LLAMA_7B, t)
    assert cost.attention == 32 * 4 * t * h
    assert cost.projections == 32 * 8 * h * h
    assert cost.mlp == 32 * 6 * h * 11008
    assert cost.head == 2 * h * 32000
    whole = forward_cost(LLAMA_7B, t, causal=False)  # without a cache the same factor 2, not half of it
    assert whole.attention == t * cost.attention


# Bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_a_pass_reads_each_weight_once_but_of_the_embedding_its_rows(config):
    model = Llama(config)
    linear = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n and "lm_head" not in n)
    head = model.lm_head.weight.numel()
    for batch, new, rows in ((1, 1, 1), (4, 1, 4), (2, 3, 6), (9, 9, config.vocab_size)):
        cost = forward_cost(config, new, 5, batch, bytes_per_weight=4, bytes_per_kv=4)
        assert cost.weight_bytes == 4 * (linear + head + rows * config.hidden_size)
        assert cost.kv_bytes == batch * (5 + new) * kv_bytes_per_token(config, 4)
        assert cost.bytes == cost.weight_bytes + cost.kv_bytes
    assert weight_bytes(config, 4) == sum(p.nbytes for p in model.parameters())


def test_a_batch_shares_the_weights_and_not_the_cache():
    one, many = next_token_cost(LLAMA_7B, 1000), next_token_cost(LLAMA_7B, 1000, 64)
    assert many.flops == 64 * one.flops and many.kv_bytes == 64 * one.kv_bytes
    assert many.weight_bytes < 1.001 * one.weight_bytes
    assert one.intensity < 1.01 and many.intensity > 15 * one.intensity
    assert next_token_cost(LLAMA_7B, 1000, bytes_per_weight=0.5).weight_bytes == one.weight_bytes // 4


def falcon(**sizes) -> nn.Module:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(FalconConfig(vocab_size=65024, tie_word_embeddings=True, **sizes))


def qwen():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **sizes, **heads))


OTHERS = {
    "Falcon 7B": lambda: falcon(hidden_size=4544, num_attention_heads=71, num_hidden_layers=32, multi_query=True),
    "Falcon 40B": lambda: falcon(
        hidden_size=8192, num_attention_heads=128, num_hidden_layers=60, num_kv_heads=8, new_decoder_architecture=True
    ),
    "Qwen2.5 7B": qwen,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_a_llama_counts_as_its_own_code_does(name):
    with torch.device("meta"):
        model = OTHERS[name]()
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].published_parameters
    config = PRESETS[name].config
    assert isinstance(config, DecoderConfig) and len(parameters(config)) == 6
    cost = forward_cost(config, 1)  # each weight of a matrix is used once a token
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    table = config.vocab_size * config.hidden_size
    assert cost.projections + cost.mlp + cost.head == 2 * (matrices + (table if config.tie_embeddings else 0))


# Seconds -------------------------------------------------------------------------------------------------------------


def test_the_roofline_takes_the_longer_of_the_two():
    machine = Machine(bytes_per_second=10.0, flops_per_second=100.0)
    assert machine.ridge == 10.0
    memory = roofline(Cost(mlp=100, weight_bytes=30), machine)
    assert (memory.seconds, memory.memory_seconds, memory.compute_seconds, memory.bound) == (3.0, 3.0, 1.0, "memory")
    compute = roofline(Cost(head=500, kv_bytes=30), machine)
    assert (compute.seconds, compute.bound) == (5.0, "compute")
    both = memory + compute  # passes follow each other: 3 + 5, not max(6, 6)
    assert (both.seconds, both.memory_seconds, both.compute_seconds) == (8.0, 6.0, 6.0)


A100 = Machine(bytes_per_second=2.0e12, flops_per_second=312e12)  # data sheet, 80 GB, bfloat16


def test_decoding_with_a_cache_waits_for_memory_and_so_gains_less_than_its_flops():
    cached, again = (generation_seconds(LLAMA_7B, A100, 512, cached=c) for c in (True, False))
    assert cached.bound == "memory"
    flops = [generation_cost(LLAMA_7B, 512, cached=c).flops for c in (True, False)]
    assert again.seconds / cached.seconds < 0.02 * flops[1] / flops[0]
    one = decode_seconds(LLAMA_7B, A100, 512)
    assert one.bound == "memory"
    assert one.seconds == pytest.approx((2 * 6_607_343_616 + 2**28 + 2 * 4096) / 2e12)  # all but the embedding
    assert decode_seconds(LLAMA_7B, A100, 16, 512).bound == "compute"  # a batch shares the reading
    assert decode_seconds(LLAMA_7B, A100, 512, cached=False).bound == "compute"


def test_a_generation_takes_as_long_as_its_steps():
    steps = [decode_seconds(SMALL, A100, t, 2).seconds for t in range(5, 9)]
    prompt = roofline(forward_cost(SMALL, 4, 0, 2), A100).seconds
    assert generation_seconds(SMALL, A100, 5, 4, 2).seconds == pytest.approx(prompt + sum(steps))


def test_a_machine_is_measured_in_bytes_and_flops_a_second():
    machine = measure_machine(working_set_bytes=2**22, seconds=0.05)
    # between a pocket calculator and a rack: units that are off by 1e6 show, a busy machine does not
    assert 1e7 < machine.bytes_per_second < 1e14
    assert 1e7 < machine.flops_per_second < 1e16


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "message"), [
    (lambda: forward_cost(SMALL, 0), "new_tokens must be at least 1; got 0"),
    (lambda: forward_cost(SMALL, 1, -1), "past_tokens must be at least 0; got -1"),
    (lambda: forward_cost(SMALL, 1, 0, 0), "batch_size must be at least 1; got 0"),
    (lambda: forward_cost(SMALL, 1, 3, cached=False), "past_tokens must be 0 where cached is False .* got 3"),
    (lambda: next_token_cost(SMALL, 0), "seq_len must be at least 1; got 0"),
    (lambda: generation_cost(SMALL, 0), "new_tokens must be at least 1; got 0"),
    (lambda: generation_cost(SMALL, 1, 0), "prompt_tokens must be at least 1; got 0"),
    (lambda: Machine(0, 1.0), "bytes_per_second must be above 0; got 0"),
    (lambda: Machine(1.0, float("nan")), "flops_per_second must be above 0; got nan"),
    (lambda: measure_machine(working_set_bytes=0), "working_set_bytes must be at least 1; got 0"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
