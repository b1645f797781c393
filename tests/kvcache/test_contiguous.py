"""The contiguous cache against a pass without any, and against the ways in which caches go wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.kvcache import CacheFull, KVCache, generate, next_token_logits, prefill
from labsupport.kvcache.grouped import grouped_attention, pad_right
from labsupport.lm import ConcatCache, Llama, LlamaConfig
from labsupport.lm import generate as generate_uncached

CONFIG = LlamaConfig(50, 48, 64, num_layers=3, num_heads=6, num_kv_heads=2)
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(CONFIG).eval().requires_grad_(False)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 1, 4, 1], [1, 11]])
def test_any_split_of_a_batch_gives_the_logits_of_one_pass(model: Llama, chunks: list[int]) -> None:
    text = tokens(3, 12)
    cache = KVCache.for_model(model, batch_size=3, capacity=12)
    parts = [model(part, cache) for part in text.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(text), **CLOSE)
    assert cache.lengths == [12, 12, 12]


@settings(max_examples=25)
@given(data=st.data())
def test_ragged_batches_fed_in_any_portions(model: Llama, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    texts = [tokens(length, seed=row).tolist() for row, length in enumerate(lengths)]
    cache, held = KVCache.for_model(model, len(texts), max(lengths)), [0] * len(texts)
    while held != lengths:
        left = [length - at for length, at in zip(lengths, held, strict=True)]
        portions = [data.draw(st.integers(0, most)) for most in left]
        if not any(portions):
            portions = left
        parts = [text[at : at + n] for text, at, n in zip(texts, held, portions, strict=True)]
        logits = model(cache.feed(parts), cache)
        for row, (text, at, n) in enumerate(zip(texts, held, portions, strict=True)):
            expected = model(torch.tensor([text]))[0, at : at + n]
            torch.testing.assert_close(logits[row, :n], expected, **CLOSE)
        held = [at + n for at, n in zip(held, portions, strict=True)]
        assert cache.lengths == held


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_generation_equals_generation_without_a_cache(model: Llama, ragged: bool, chunk_size: int | None) -> None:
    prompts = [tokens(n, seed=n).tolist() for n in ((3, 9, 1) if ragged else (5, 5, 5))]
    expected = [generate_uncached(model, torch.tensor([prompt]), 12)[0].tolist() for prompt in prompts]
    assert generate(model, prompts, 12, chunk_size=chunk_size) == expected
    assert generate(model, prompts, 12, KVCache.for_model(model, 3, 20), chunk_size) == expected


def test_generation_ends_with_the_end_token(model: Llama) -> None:
    prompts = [tokens(4, seed=7).tolist(), tokens(6, seed=8).tolist()]
    free = generate(model, prompts, 12)
    end = free[0][2]
    cut = [row[: row.index(end) + 1] if end in row else row for row in free]
    for kind in ("contiguous", "paged"):
        assert generate(model, prompts, 12, kind, eos_token_id=end) == cut


def test_sampling_from_a_seed_repeats(model: Llama) -> None:
    prompts = tokens(2, 5)
    first = generate(model, prompts, 8, temperature=1.0, seed=3)
    assert first == generate(model, prompts, 8, "paged", temperature=1.0, seed=3)
    assert first == generate_uncached(model, prompts, 8, temperature=1.0, seed=3).tolist()


def test_capacity_of_a_made_cache_is_used_to_the_last_slot(model: Llama) -> None:
    assert len(generate(model, tokens(1, 5), 4, KVCache.for_model(model, 1, 8))[0]) == 4
    with pytest.raises(CacheFull):
        generate(model, tokens(1, 5), 5, KVCache.for_model(model, 1, 8))


def test_select_copies_and_truncate_takes_back(model: Llama) -> None:
    prompt, one, two = tokens(1, 6), tokens(1, 3, seed=1), tokens(1, 3, seed=2)
    cache = KVCache.for_model(model, 1, 9)
    model(prompt, cache)
    forked = cache.select([0, 0])
    logits = model(torch.cat((one, two)), forked)
    assert cache.lengths == [6] and forked.lengths == [9, 9]
    for row, continuation in enumerate((one, two)):
        torch.testing.assert_close(logits[row], model(torch.cat((prompt, continuation), dim=1))[0, 6:], **CLOSE)
    model(one, cache)
    cache.truncate(0, 6)
    torch.testing.assert_close(model(two, cache)[0], logits[1], **CLOSE)


def test_a_pass_that_fails_leaves_what_was_held(model: Llama) -> None:
    text = tokens(1, 6)
    cache = KVCache.for_model(model, 1, 8)
    model(text[:, :5], cache)
    hidden, rotary = model.embed(tokens(1, 3, seed=5), cache)
    model.layers[0](hidden, rotary, cache)  # and no more: advance() is never called
    torch.testing.assert_close(model(text[:, 5:], cache)[0, 0], model(text)[0, 5], **CLOSE)


def test_nbytes_is_what_the_formula_says(model: Llama) -> None:
    cache = KVCache.for_model(model, 4, 10)
    assert cache.nbytes == 2 * 3 * 4 * 10 * 2 * 8 * 4  # k and v, layers, batch, capacity, heads, head_dim, float32
    assert KVCache(3, 4, 10, 2, 8, dtype=torch.bfloat16).nbytes == cache.nbytes // 2


def test_length_moves_on_once_for_all_layers(model: Llama) -> None:
    cache = KVCache.for_model(model, 1, 4)
    for step in range(4):  # a length that every layer moves on is 3 after one token, and full in the second pass
        model(tokens(1, 1, seed=step), cache)
        assert cache.lengths == [step + 1]
    assert (cache.keys.abs().sum(-1) > 0).all(), "each layer wrote each slot"


def test_prefill_keeps_every_token(model: Llama) -> None:
    text = tokens(2, 5)
    cache, reference = KVCache.for_model(model, 2, 7), ConcatCache(3)
    model(text, cache)
    model(text, reference)
    assert cache.lengths == [5, 5]
    for layer in range(3):
        torch.testing.assert_close(cache.keys[layer, :, :, :5], reference.keys[layer])
        torch.testing.assert_close(cache.values[layer, :, :, :5], reference.values[layer])
    assert not cache.keys[:, :, :, 5:].any()


def test_short_sequences_do_not_see_padding(model: Llama) -> None:
    long, short, new = tokens(10).tolist(), tokens(3, seed=1).tolist(), 7
    cache = KVCache.for_model(model, 2, 11)
    logits = next_token_logits(model, cache, [long, short])
    torch.testing.assert_close(logits[1], model(torch.tensor([short]))[0, -1], **CLOSE)
    decoded = model(torch.tensor([[new], [new]]), cache)[:, 0]
    for row, text in enumerate((long, short)):
        torch.testing.assert_close(decoded[row], model(torch.tensor([[*text, new]]))[0, -1], **CLOSE)


def test_a_full_cache_says_what_to_do(model: Llama) -> None:
    cache = KVCache.for_model(model, 2, 6)
    prefill(model, cache, [tokens(6).tolist(), tokens(2).tolist()])
    with pytest.raises(CacheFull, match=r"sequence 0 holds 6 tokens and 1 more .* capacity >= 7, or reset"):
        model(tokens(2, 1), cache)
    assert cache.lengths == [6, 2]
    model(cache.feed([[], [3]]), cache)  # the other continues
    assert cache.lengths == [6, 3]
    cache.reset(0)
    assert cache.lengths == [0, 3]


def test_grouped_attention_is_attention_with_repeated_heads() -> None:
    torch.manual_seed(0)
    key, value = torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    for time in (1, 4):
        query = torch.randn(2, 6, time, 8)
        mask = torch.ones(2, time, 9, dtype=torch.bool).tril(9 - time)
        mask[1, :, 5:] = False
        scores = query @ key.repeat_interleave(3, 1).mT / 8**0.5
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        torch.testing.assert_close(
            grouped_attention(query, key, value, mask), weights @ value.repeat_interleave(3, 1), **CLOSE
        )


def test_wrong_arguments_are_named(model: Llama) -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1; got 0"):
        KVCache(1, 1, 0, 1, 8)
    cache = KVCache.for_model(model, 2, 6)
    with pytest.raises(ValueError, match=r"2 sequences \(batch_size\); got 1"):
        model(tokens(1, 2), cache)
    with pytest.raises(ValueError, match="token_lists must be 2 lists"):
        cache.feed([[1]])
    cache.feed([[1, 2], [3]])
    with pytest.raises(ValueError, match=r"\[2, 2\] that feed\(\) was given"):
        model(tokens(2, 1), cache)
    with pytest.raises(ValueError, match="cache must be empty, with batch_size = 1"):
        generate(model, tokens(1, 2), 3, cache)
    with pytest.raises(ValueError, match="cache must be one of contiguous, paged"):
        generate(model, tokens(1, 2), 3, "ring")
    with pytest.raises(ValueError, match=r"length must lie in 0\.\.0; got 1"):
        cache.truncate(0, 1)
    assert pad_right([[1, 2], []]).tolist() == [[1, 2], [0, 0]]
