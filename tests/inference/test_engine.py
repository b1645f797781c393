"""Every path through the engine gives the tokens of `labsupport.lm.generate`, without a cache, and leaves nothing."""

from __future__ import annotations

import copy
import dataclasses
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labsupport.inference import LLMEngine, PackedBatch, RequestOutput, SamplingParams, block_bytes, blocks_that_fit
from labsupport.kvcache import PRESETS, PagedBatch, PagedKVCache, weight_bytes
from labsupport.lm import LanguageModel, corpus, load_lm
from labsupport.lm import generate as generate_uncached
from labsupport.lm.rope import RopeScaling

NEW = 20
LENGTHS = (1, 3, 5, 16, 17, 31, 32, 48, 64, 70)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("tiny", verbose=False)


@pytest.fixture(scope="module")
def prompts(lm: LanguageModel) -> list[list[int]]:
    """Of many lengths; half of them begin alike."""
    text = lm.tokenizer.encode(corpus("evaluation"))
    own = [text[500 * i : 500 * i + length] for i, length in enumerate(LENGTHS)]
    return [each if i % 2 else text[9000:9040] + each for i, each in enumerate(own)]


@pytest.fixture(scope="module")
def reference(lm: LanguageModel, prompts: list[list[int]]) -> list[list[int]]:
    return [uncached(lm, prompt, NEW) for prompt in prompts]


def uncached(lm: LanguageModel, prompt: list[int], max_tokens: int) -> list[int]:
    return generate_uncached(lm.model, torch.tensor([prompt]), max_tokens)[0].tolist()


def greedy(max_tokens: int = NEW, **params: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, **params})


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def check_empty(engine: LLMEngine) -> None:
    assert not engine.has_unfinished
    engine.scheduler.check_integrity()
    assert engine.cache.usage()["used_blocks"] == 0 == engine.stats().kv_cache_usage_perc
    engine.cache.allocator.evict(engine.cache.num_blocks)
    assert engine.cache.usage()["free_blocks"] == engine.cache.num_blocks


# -------------------------------------------------------------------------------------- equal tokens on every path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 1},
        {"max_num_seqs": 3, "max_num_batched_tokens": 7, "block_size": 5},
        {"num_blocks": 9, "enable_prefix_caching": False},
        {"num_blocks": 9},
        {"block_size": 1, "num_blocks": 140},
        {"fused": False},
        {"fused": False, "max_num_seqs": 3, "max_num_batched_tokens": 7, "block_size": 5},
        {"fused": False, "num_blocks": 9},
    ],
    ids=["batched", "alone", "chunked", "preempted", "preempted-cached", "block-of-one", "plain", "plain-chunked",
         "plain-preempted"],
)  # fmt: skip
def test_greedy_tokens_are_those_without_a_cache(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]], options: dict[str, Any]
) -> None:
    engine = LLMEngine(lm, **options)
    assert tokens(engine.generate(prompts, greedy())) == reference
    assert (engine.stats().num_preemptions > 0) == ("num_blocks" in options)
    check_empty(engine)


def test_prefixes_are_shared_between_and_after_requests(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    engine = LLMEngine(lm, max_num_seqs=2)
    assert tokens(engine.generate(prompts, greedy())) == reference
    assert engine.stats().prefix_cache_hits >= 32
    again = engine.generate(prompts, greedy())
    assert tokens(again) == reference
    assert [each.num_cached_tokens for each in again] == [(len(prompt) - 1) // 16 * 16 for prompt in prompts]
    check_empty(engine)


@settings(max_examples=8, suppress_health_check=[HealthCheck.large_base_example])
@given(data=st.data())
def test_any_engine_any_order_and_aborted_neighbours(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]], data: st.DataObject
) -> None:
    block_size, seqs = data.draw(st.sampled_from([2, 4, 16])), data.draw(st.integers(1, 6))
    engine = LLMEngine(
        lm, seqs, block_size, num_blocks=-(-data.draw(st.integers(124, 260)) // block_size),
        enable_prefix_caching=data.draw(st.booleans()), max_num_batched_tokens=seqs + data.draw(st.integers(0, 60)),
    )  # fmt: skip
    left = list(data.draw(st.permutations(range(len(prompts)))))
    wanted: dict[Any, list[int]] = {}
    while left or engine.has_unfinished:
        for _ in range(min(len(left), data.draw(st.integers(0, 3)))):
            index, limit = left.pop(), data.draw(st.integers(0, NEW))
            wanted[engine.add_request(prompts[index], greedy(limit))] = reference[index][:limit]
        if data.draw(st.integers(0, 9)) == 0 and wanted:
            engine.abort(data.draw(st.sampled_from(sorted(wanted, key=str))))
        for output in engine.step():
            assert output.token_ids == wanted[output.request_id][: len(output.token_ids)]
            if output.finished:
                assert output.token_ids == wanted[output.request_id]
        engine.scheduler.check_integrity()
    check_empty(engine)


@pytest.mark.parametrize("options", [{}, {"num_blocks": 14, "block_size": 8}, {"max_num_seqs": 2}, {"fused": False}])
def test_forks_go_on_as_the_first_would(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]], options: dict[str, Any]
) -> None:
    engine = LLMEngine(lm, **options)
    first = engine.add_request(prompts[3], greedy(), "first")
    forked = {first: reference[3]}
    while engine.has_unfinished:
        for output in engine.step():
            assert output.token_ids == forked[output.request_id][: len(output.token_ids)]
        if engine.stats().num_steps in (1, 2, 5, 9) and first in engine.scheduler.requests:
            limit, computed = NEW - engine.stats().num_steps, engine.stats().num_steps
            new = engine.fork(first, greedy(limit))
            forked[new] = reference[3][:limit]
            if not options and computed:
                assert engine.cache.block_table(new) == engine.cache.block_table(first), "nothing is computed twice"
        engine.scheduler.check_integrity()
    assert len(forked) == 5
    check_empty(engine)


def test_forks_share_blocks_and_draw_their_own_numbers(lm: LanguageModel, prompts: list[list[int]]) -> None:
    engine = LLMEngine(lm, enable_prefix_caching=False)
    params = [SamplingParams(max_tokens=NEW, seed=seed, ignore_eos=True) for seed in range(3)]
    alone = [LLMEngine(lm).generate([prompts[9]], each)[0].token_ids for each in params]
    first = engine.add_request(prompts[9], params[0])
    engine.step()
    used = engine.cache.usage()["used_blocks"]
    ids = [first, *(engine.fork(first, each) for each in params[1:])]
    assert engine.cache.usage()["used_blocks"] == used, "a fork costs nothing before it writes"
    done: dict[Any, list[int]] = {}
    while engine.has_unfinished:
        done |= {each.request_id: each.token_ids for each in engine.step() if each.finished}
    assert done[first] == alone[0] and len({tuple(done[each]) for each in ids}) == 3
    assert all(done[each][0] == alone[0][0] for each in ids), "what was said before the fork is common"
    check_empty(engine)


def test_fork_of_bad_input(lm: LanguageModel) -> None:
    engine = LLMEngine(lm)
    with pytest.raises(ValueError, match="'x' is not"):
        engine.fork("x")
    engine.add_request([65, 66], greedy(5), "a")
    for _ in range(3):
        engine.step()
    for params, message in ((greedy(3), "max_tokens = 3"), (greedy(5, logprobs=1), "logprobs=None")):
        with pytest.raises(ValueError, match=message):
            engine.fork("a", params)
    with pytest.raises(ValueError, match="request_id must be new"):
        engine.fork("a", new_id="a")
    engine.scheduler.check_integrity()
    engine.abort("a")
    check_empty(engine)


@pytest.mark.parametrize("method", ["rtn", "int8_dynamic"])
def test_quantized_models_work(lm: LanguageModel, prompts: list[list[int]], method: str) -> None:
    from labsupport.quantization import quantize_model

    windows = list(torch.tensor(lm.tokenizer.encode(corpus("calibration"))[:512]).split(128))
    model: Any = quantize_model(lm.model, windows, method, progress=False)
    quantized = dataclasses.replace(lm, model=model)
    engine = LLMEngine(quantized, max_num_batched_tokens=32)
    outputs = engine.generate(prompts[:5], greedy(12))
    assert tokens(outputs) == [uncached(quantized, prompt, 12) for prompt in prompts[:5]]
    check_empty(engine)


def test_bfloat16_computes_in_bfloat16_and_leaves_the_model(lm: LanguageModel, prompts: list[list[int]]) -> None:
    engine = LLMEngine(lm, dtype=torch.bfloat16, device="cpu")
    assert engine.cache.blocks.dtype == torch.bfloat16 == engine.model.norm.weight.dtype
    assert lm.model.norm.weight.dtype == torch.float32
    assert LLMEngine(lm, device="cpu", dtype=torch.float32).model is lm.model
    outputs = engine.generate(prompts, greedy())
    assert [len(each.token_ids) for each in outputs] == [NEW] * len(prompts)
    check_empty(engine)


@pytest.mark.parametrize("bits, fused", [(8, None), (8, False), (4, None)])
def test_quantized_cache_gives_the_same_tokens_on_every_path(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]], bits: int, fused: bool | None
) -> None:
    alone = LLMEngine(lm, max_num_seqs=1, kv_cache_bits=bits, enable_prefix_caching=False, fused=fused)
    wanted = tokens(alone.generate(prompts, greedy()))
    every: list[dict[str, Any]] = [{}, {"max_num_batched_tokens": 16}, {"num_blocks": 9}]
    for options in every:
        engine = LLMEngine(lm, kv_cache_bits=bits, fused=fused, **options)
        assert tokens(engine.generate(prompts, greedy())) == wanted
        check_empty(engine)
    same = [a == b for mine, theirs in zip(wanted, reference, strict=True) for a, b in zip(mine, theirs, strict=True)]
    assert sum(same) >= {8: 0.95, 4: 0.3}[bits] * len(same)


def test_quantized_cache_holds_more_tokens_in_the_same_memory(lm: LanguageModel) -> None:
    full, half = (LLMEngine(lm, num_blocks=64, kv_cache_bits=bits).cache.nbytes for bits in (None, 4))
    head_dim = lm.model.config.head_dim
    assert head_dim is not None and half == full * (head_dim / 2 + 4) / (4 * head_dim)
    with pytest.raises(ValueError, match="bits must be 4 or 8; got 3"):
        LLMEngine(lm, num_blocks=64, kv_cache_bits=3)
    with pytest.raises(ValueError, match="fused must be False"):
        LLMEngine(lm, num_blocks=64, kv_cache_bits=4, fused=True)


def test_packed_pass_is_that_of_each_sequence_alone(lm: LanguageModel, prompts: list[list[int]]) -> None:
    cache = PagedKVCache.for_model(lm.model, num_blocks=40, enable_prefix_caching=False)
    texts = {name: prompts[index] for name, index in (("a", 5), ("b", 6), ("c", 7), ("d", 8))}
    held = {"a": len(texts["a"]) - 1, "b": len(texts["b"]) - 1, "c": 10, "d": 0}
    with torch.no_grad():
        for name, length in held.items():
            cache.add_sequence(name)
            if length:
                batch = PagedBatch(cache, [name])
                lm.model(batch.feed([texts[name][:length]]), batch)
        packed = PackedBatch(cache, [(n, texts[n][-1]) for n in "ab"], [(n, texts[n][held[n] :]) for n in "cd"])
        logits = lm.model(packed.tokens, packed)[0]
        wanted = torch.cat([lm.model(torch.tensor([texts[n]]))[0, held[n] :] for n in "abcd"])
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert all(cache.length(name) == len(text) for name, text in texts.items())
    cache.check_integrity()


# ------------------------------------------------------------------------------------------------- golden bugs


def test_blocks_hold_keys_and_values_beside_the_weights() -> None:
    config = PRESETS["Llama 2 7B"].config
    assert block_bytes(config, 16) == 8 * 2**20  # the document: 4 MiB, keys or values but not both
    blocks = blocks_that_fit(72 * 2**30, weight_bytes(config), config, 16)
    assert blocks == 7609  # the document: 18,432, which need 144 GiB
    assert blocks_that_fit(72 * 2**30, weight_bytes(config), config, 16, reserved_bytes=8 * 2**20) == blocks - 1
    with pytest.raises(ValueError, match="at least one block"):
        blocks_that_fit(weight_bytes(config), weight_bytes(config), config, 16)


def test_block_count_is_what_is_allocated(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(each.nbytes for each in lm.model.parameters())
    size = block_bytes(lm.model.config, 16, 4)
    cache = PagedKVCache.for_model(lm.model, num_blocks=10)
    assert cache.nbytes == 10 * size
    monkeypatch.setattr("labsupport.inference.memory.free_bytes", lambda device: weights + 40 * size)
    # half of (the weights, which are there, and what is free) is the weights and 20 blocks
    assert LLMEngine(lm, memory_fraction=0.5).cache.num_blocks == 20
    with pytest.raises(ValueError, match="at least one block"):
        LLMEngine(lm, memory_fraction=0.3)


def test_tokens_go_to_their_own_request_when_some_finish_early(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    """The document removes finished requests from the list that it walks through: others get their tokens."""
    engine = LLMEngine(lm, enable_prefix_caching=False, max_num_batched_tokens=256)
    outputs = engine.generate(prompts, greedy(2))
    assert tokens(outputs) == [each[:2] for each in reference]
    assert engine.stats().num_steps == 3  # 487 tokens of prompts take two steps of 256
    lengths = [1 + (7 * i) % 5 for i in range(len(prompts))]
    outputs = engine.generate(prompts, [greedy(length) for length in lengths])
    assert tokens(outputs) == [each[:length] for each, length in zip(reference, lengths, strict=True)]


def test_results_come_in_the_order_of_the_prompts(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    outputs = LLMEngine(lm).generate(prompts[:3], [greedy(3), greedy(1), greedy(2)])
    assert tokens(outputs) == [reference[0][:3], reference[1][:1], reference[2][:2]]
    assert [each.prompt_token_ids for each in outputs] == prompts[:3]


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("fails_in", ["first layer", "last layer", "head"])
def test_nothing_is_left_after_an_exception(
    lm: LanguageModel,
    prompts: list[list[int]],
    reference: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    fails_in: str,
    fused: bool | None,
) -> None:
    engine, calls = LLMEngine(lm, max_num_seqs=4, max_num_batched_tokens=64, fused=fused), 0
    places: dict[str, tuple[Any, str]] = {
        "first layer": (lm.model.layers[0].mlp, "forward"),
        "last layer": (lm.model.layers[-1].mlp, "forward"),
        "head": (lm.model.lm_head, "forward"),
    }
    if engine.runner.fused is not None:
        layers = engine.runner.fused.layers
        places = {"first layer": (layers[0], "down"), "last layer": (layers[-1], "down")}
        places["head"] = (engine.runner.fused, "lm_head")
    owner, name = places[fails_in]
    function = getattr(owner, name)

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of memory")
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.generate(prompts, greedy())
    assert engine.step() == [] and engine.stats().num_requests_waiting == 0
    assert tokens(engine.generate(prompts[:2], greedy())) == reference[:2], "stale requests, or a broken cache"
    check_empty(engine)


def test_limits_are_kept(lm: LanguageModel) -> None:
    engine = LLMEngine(lm)
    output = engine.generate(["abc"], SamplingParams(max_tokens=0))[0]
    assert (output.token_ids, output.text, output.finish_reason) == ([], "", "length")
    with pytest.raises(ValueError, match="max_num_seqs must be at least 1; got 0"):
        LLMEngine(lm, max_num_seqs=0)
    with pytest.raises(ValueError, match=r"prompt must hold tokens of 0\.\.255"):
        engine.generate([[1, 256]])
    check_empty(engine)


# ------------------------------------------------------------------------------------------- sampling and text


def test_a_seeded_request_is_the_same_alone_batched_and_preempted(lm: LanguageModel, prompts: list[list[int]]) -> None:
    params = [SamplingParams(max_tokens=NEW, seed=i, top_k=20 * (i % 2), top_p=0.9, ignore_eos=True) for i in range(10)]
    alone = [LLMEngine(lm).generate([prompt], each)[0].token_ids for prompt, each in zip(prompts, params, strict=True)]
    assert tokens(LLMEngine(lm).generate(prompts, params)) == alone
    engine = LLMEngine(lm, num_blocks=9, max_num_batched_tokens=40)
    assert tokens(engine.generate(prompts, params)) == alone and engine.stats().num_preemptions
    other = [dataclasses.replace(each, seed=99 + i) for i, each in enumerate(params)]
    assert tokens(engine.generate(prompts, other)) != alone


def test_stop_strings_eos_and_logprobs(lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]]) -> None:
    text = lm.tokenizer.decode(reference[5])
    outputs = LLMEngine(lm).generate(
        [prompts[5]] * 3,
        [greedy(stop=text[5:8]), greedy(stop_token_ids=[reference[5][4]]), greedy(logprobs=2)],
    )
    first = text.find(text[5:8])
    assert (outputs[0].text, outputs[0].finish_reason) == (text[:first], "stop")
    where = reference[5].index(reference[5][4])
    assert outputs[1].token_ids == reference[5][: where + 1] and outputs[1].text == text[:where]
    assert outputs[2].logprobs is not None and outputs[0].logprobs is None
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompts[5] + reference[5]]))[0, len(prompts[5]) - 1 : -1]
    for row, each, token in zip(logits.log_softmax(-1), outputs[2].logprobs, reference[5], strict=True):
        assert next(iter(each)) == token and each == pytest.approx({i: float(row[i]) for i in each}, abs=1e-4)
        assert len(each) == 2


def test_strings_are_prompts_and_texts_are_what_the_tokens_say(lm: LanguageModel) -> None:
    outputs = LLMEngine(lm).generate(["The with statement", "import "], greedy(24))
    for output, prompt in zip(outputs, ["The with statement", "import "], strict=True):
        assert output.prompt_token_ids == lm.tokenizer.encode(prompt)
        assert output.text == lm.tokenizer.decode(output.token_ids) and output.finish_reason == "length"


# ---------------------------------------------------------------------------------------------------- streaming


def test_steps_stream_each_token_and_text_only_grows(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    engine = LLMEngine(lm, max_num_batched_tokens=50)
    ids = [engine.add_request(prompt, greedy(), request_id=f"r{i}") for i, prompt in enumerate(prompts)]
    assert ids == [f"r{i}" for i in range(10)]
    seen: dict[Any, list[RequestOutput]] = {each: [] for each in ids}
    while engine.has_unfinished:
        for output in engine.step():
            seen[output.request_id].append(output)
    for each, wanted in zip(ids, reference, strict=True):
        outputs = seen[each]
        assert [len(output.token_ids) for output in outputs] == list(range(1, NEW + 1))
        assert all(b.text.startswith(a.text) for a, b in pairwise(outputs))
        assert [output.finished for output in outputs] == [False] * (NEW - 1) + [True]
        assert outputs[-1].token_ids == wanted
        times = outputs[-1].times
        assert None not in (times.first_scheduled, times.first_token, times.finished)
    stats = engine.stats()
    assert stats.generation_tokens == 10 * NEW and stats.prompt_tokens == sum(map(len, prompts))
    assert stats.finished == {"length": 10}
    check_empty(engine)


def test_abort_waiting_and_running(lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]]) -> None:
    engine = LLMEngine(lm, max_num_seqs=2)
    ids = [engine.add_request(prompt, greedy()) for prompt in prompts[:4]]
    engine.step()
    engine.step()
    running, waiting = engine.abort(ids[0]), engine.abort(ids[3])
    assert running is not None and waiting is not None
    assert running.token_ids == reference[0][:2] and running.finish_reason == "abort" and waiting.token_ids == []
    assert engine.abort(ids[0]) is None and engine.abort("nobody") is None
    done: dict[Any, list[int]] = {}
    while engine.has_unfinished:
        done |= {output.request_id: output.token_ids for output in engine.step() if output.finished}
    assert done == {ids[1]: reference[1], ids[2]: reference[2]}
    check_empty(engine)


def test_generate_beside_streamed_requests_loses_nothing(
    lm: LanguageModel, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    engine = LLMEngine(lm)
    short, long = engine.add_request(prompts[0], greedy(4), "0"), engine.add_request(prompts[1], greedy(NEW))
    assert short == "0" and long != short
    assert tokens(engine.generate(prompts[2:4], greedy(8))) == [each[:8] for each in reference[2:4]]
    final = {}
    while engine.has_unfinished:
        for output in engine.step():
            final[output.request_id] = output
    assert (final[short].token_ids, final[long].token_ids) == (reference[0][:4], reference[1])
    check_empty(engine)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ("abc", None, "prompts must be a list"),
        ([""], None, "prompt must hold at least one token"),
        (["a", []], None, "prompt must hold at least one token"),
        ([[1.5]], None, "prompt must be a string or token ids"),
        (["a", "b"], [SamplingParams()], r"one a prompt \(2\); got 1"),
        (["a"], [3], "sampling_params must be SamplingParams; got int"),
        (["a" * 2040], SamplingParams(max_tokens=9), "max_model_len = 2048 tokens; got 2040 and 9"),
        (["a", "b" * 60], SamplingParams(max_tokens=9), "must fit the cache of 4 blocks"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(lm: LanguageModel, prompts: Any, params: Any, message: str) -> None:
    engine = LLMEngine(lm, num_blocks=4)
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, params)
    check_empty(engine)


def test_no_prompts_and_random_ids(lm: LanguageModel) -> None:
    engine = LLMEngine(lm)
    assert engine.generate([]) == []
    drawn = [engine.generate(["a"], SamplingParams(temperature=2.0))[0].token_ids for _ in range(3)]
    assert len({tuple(each) for each in drawn}) > 1, "without a seed, each time something else"
    random.seed(0)  # nor does the engine depend on the program's own random numbers
    first = engine.generate(["a"], SamplingParams(seed=1))[0].token_ids
    random.seed(1)
    assert engine.generate(["a"], SamplingParams(seed=1))[0].token_ids == first


@pytest.mark.parametrize(
    ("name", "value"),
    [("block_size", 0), ("num_blocks", 0), ("max_num_batched_tokens", 3), ("max_model_len", 0), ("memory_fraction", 0)],
)
def test_bad_option_is_named(lm: LanguageModel, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        LLMEngine(lm, **{name: value})


def test_more_positions_than_the_model_has_are_refused(lm: LanguageModel) -> None:
    longest = lm.model.config.max_positions
    assert LLMEngine(lm, num_blocks=8, max_model_len=longest).max_model_len == longest
    with pytest.raises(ValueError, match=f"max_model_len must be at most {longest}, the positions.*got {longest + 1}"):
        LLMEngine(lm, num_blocks=8, max_model_len=longest + 1)
    stretched = dataclasses.replace(
        lm.model.config, rope_scaling=RopeScaling("dynamic", 4.0, original_positions=longest)
    )
    assert stretched.longest_text == 4 * longest


def test_weights_that_a_dtype_cannot_hold_are_named(lm: LanguageModel) -> None:
    large = dataclasses.replace(lm, model=copy.deepcopy(lm.model))
    with torch.no_grad():
        large.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5  # type: ignore[index, union-attr, operator]
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight has values beyond 65,504, the range of float16"):
        LLMEngine(large, num_blocks=8, dtype=torch.float16)
