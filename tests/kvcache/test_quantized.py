"""Integer caches: errors within half a step, honest bytes, and what they do to a language model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labsupport.kvcache import KVCache, QuantizedKVCache, WithFreshCache, generate
from labsupport.kvcache.quantized import dequantize_heads, hadamard_for, quantize_heads
from labsupport.lm import LanguageModel, corpus, load_lm, perplexity


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("tiny", verbose=False)


@given(seed=st.integers(0, 999), bits=st.sampled_from([4, 8]), exponent=st.integers(-3, 3), shift=st.floats(-3, 3))
def test_error_is_half_a_step_of_each_token_and_head(seed: int, bits: int, exponent: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(2, 3, 5, 16, generator=generator) + shift) * 10.0**exponent
    codes, scales = quantize_heads(x, bits)
    error = (dequantize_heads(codes, scales, bits, 16) - x).abs()
    low, high = x.aminmax(dim=-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    # float16 rounds scale and minimum by 2**-11 of each, the scale counted 2**bits - 1 times at the top
    rounding = 2**-11 * (low.abs() + (high - low)) + 2**bits * 2**-24
    assert (error <= step / 2 + rounding).all()


def test_one_large_token_costs_the_others_nothing() -> None:
    x = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    louder = x.clone()
    louder[0, 0, 1] *= 1000
    for bits in (4, 8):
        plain, loud = (dequantize_heads(*quantize_heads(each, bits), bits, 8) for each in (x, louder))
        other = torch.ones(1, 2, 4, dtype=torch.bool)
        other[0, 0, 1] = False
        assert torch.equal(plain[other], loud[other])


@pytest.mark.parametrize("head_dim", [8, 12, 64])
def test_rotation_makes_a_large_channel_harmless(head_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 20, head_dim, generator=generator) for _ in range(3))
    key[..., 1] += 30
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    errors = {}
    for rotate in (True, False):
        cache = QuantizedKVCache(1, 1, 20, 2, head_dim, bits=8, rotate=rotate)
        cache.positions(1, 20)
        errors[rotate] = (cache.attend(0, query, key, value) - expected).norm() / expected.norm()
    assert errors[True] < 0.05
    assert errors[True] < errors[False]
    matrix = hadamard_for(head_dim)
    torch.testing.assert_close(matrix @ matrix, torch.eye(len(matrix)))


@pytest.mark.parametrize(("bits", "bytes_each"), [(8, 32 + 4), (4, 16 + 4)])
def test_nbytes_counts_codes_scales_and_minima(lm: LanguageModel, bits: int, bytes_each: int) -> None:
    cache = QuantizedKVCache.for_model(lm.model, 3, 10, bits=bits)
    assert cache.nbytes == 2 * 4 * 3 * 10 * 2 * bytes_each
    assert cache.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in (cache.codes, cache.scales))
    assert KVCache.for_model(lm.model, 3, 10).nbytes == 2 * 4 * 3 * 10 * 2 * 32 * 4


@pytest.mark.parametrize("bits", [4, 8])
def test_chunks_ragged_batches_and_forks_agree_with_one_pass(lm: LanguageModel, bits: int) -> None:
    texts = [lm.tokenizer.encode(text) for text in ("The for statement is used to iterate", "A class")]
    alone = []
    for text in texts:
        cache = QuantizedKVCache.for_model(lm.model, 1, len(text), bits=bits)
        alone.append(lm.model(torch.tensor([text]), cache)[0, -1].detach())
    cache = QuantizedKVCache.for_model(lm.model, 2, 40, bits=bits)
    lm.model(cache.feed([text[:3] for text in texts]), cache)
    lm.model(cache.feed([text[3:-1] for text in texts]), cache)
    cache = cache.select([1, 0])
    last = lm.model(torch.tensor([[texts[1][-1]], [texts[0][-1]]]), cache)[:, 0]
    # A value next to a rounding boundary may fall on the other side: a code, not a float32 rounding, is the tolerance.
    for row, expected in enumerate(reversed(alone)):
        assert (last[row] - expected).norm() < (0.02 if bits == 8 else 0.1) * expected.norm()


def test_perplexity_of_tiny_and_the_order_of_precisions(lm: LanguageModel) -> None:
    text = torch.tensor(lm.tokenizer.encode(corpus("evaluation"))[:2048])
    results = {
        bits: perplexity(WithFreshCache(lm.model, partial(QuantizedKVCache.for_model, lm.model, bits=bits)), text)
        for bits in (8, 4)
    }
    plain = perplexity(lm.model, text)
    exact = WithFreshCache(lm.model, partial(KVCache.for_model, lm.model), chunk_size=100)
    assert perplexity(exact, text) == pytest.approx(plain, rel=1e-5)
    assert abs(results[8] / plain - 1) < 0.005
    assert abs(results[8] / plain - 1) < abs(results[4] / plain - 1) < 0.1


@pytest.mark.slow
@pytest.mark.smollm2
def test_int8_costs_smollm2_less_than_half_a_percent() -> None:
    lm = load_lm("smollm2-135m", verbose=False)
    text = torch.tensor(lm.tokenizer.encode(corpus("evaluation"))[:1024])
    int8 = WithFreshCache(lm.model, partial(QuantizedKVCache.for_model, lm.model, bits=8))
    assert abs(perplexity(int8, text) / perplexity(lm.model, text) - 1) < 0.005


def test_generation_takes_them_and_wrong_bits_are_named(lm: LanguageModel) -> None:
    prompts = [lm.tokenizer.encode(text) for text in ("import ", "The ")]
    assert [len(row) for row in generate(lm.model, prompts, 5, "int4")] == [5, 5]
    with pytest.raises(ValueError, match="bits must be 4 or 8; got 3"):
        QuantizedKVCache(1, 1, 1, 1, 8, bits=3)
