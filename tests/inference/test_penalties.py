from __future__ import annotations

from typing import Any

import pytest
import torch

from labsupport.inference import LLMEngine, SamplingParams
from labsupport.inference.penalties import adjusted_logits
from labsupport.lm import load_lm


@pytest.fixture(scope="module")
def engine() -> LLMEngine:
    return LLMEngine(load_lm("tiny", verbose=False), max_num_seqs=4, num_blocks=128)


def adjusted(
    params: SamplingParams, prompt: list[int], output: list[int], endings: tuple[int, ...] = ()
) -> list[float]:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    result = adjusted_logits(logits, [params], [prompt], [output], [endings])[0].tolist()
    assert logits.tolist() == [[2.0, -2.0, 1.0, 0.5]], "the model's own logits are kept: logprobs come from them"
    return result


def test_the_definitions() -> None:
    """By hand. Repetition counts the prompt, presence and frequency do not; a negative logit moves down, not up."""
    assert adjusted(SamplingParams(repetition_penalty=2.0), [0], [1, 1]) == [1.0, -4.0, 1.0, 0.5]
    assert adjusted(SamplingParams(presence_penalty=0.5), [0], [1, 1, 2]) == [2.0, -2.5, 0.5, 0.5]
    assert adjusted(SamplingParams(frequency_penalty=0.5), [0], [1, 1, 2]) == [2.0, -3.0, 0.5, 0.5]
    assert adjusted(SamplingParams(logit_bias={0: -100, 3: 1}), [0], []) == [-98.0, -2.0, 1.0, 1.5]
    both = SamplingParams(presence_penalty=1.0, frequency_penalty=0.25, repetition_penalty=2.0)
    assert adjusted(both, [3], [0, 0]) == [1.0 - 1.5, -2.0, 1.0, 0.25]
    least = SamplingParams(min_tokens=2)
    assert adjusted(least, [0], [1], (0, 2, 99, -1)) == [-torch.inf, -2.0, -torch.inf, 0.5]
    assert adjusted(least, [0], [1, 1], (0, 2)) == [2.0, -2.0, 1.0, 0.5]


def test_only_rows_that_ask_are_changed() -> None:
    logits = torch.randn(3, 50)
    params = [SamplingParams(), SamplingParams(repetition_penalty=1.5), SamplingParams()]
    result = adjusted_logits(logits, params, [[1]] * 3, [[2]] * 3, [()] * 3)
    assert torch.equal(result[[0, 2]], logits[[0, 2]]) and not torch.equal(result[1], logits[1])
    assert adjusted_logits(logits, [SamplingParams()] * 3, [[1]] * 3, [[2]] * 3, [()] * 3) is logits


def generate(engine: LLMEngine, prompt: str | list[int] = "The with statement", **fields: Any) -> Any:
    params = SamplingParams(**{"max_tokens": 40, "temperature": 0.0, "ignore_eos": True, **fields})
    return engine.generate([prompt], params)[0]


def test_the_engine_uses_them(engine: LLMEngine) -> None:
    plain = generate(engine)
    first = plain.token_ids[0]
    assert generate(engine, logit_bias={first: -100.0}).token_ids[0] != first
    assert set(generate(engine, logit_bias={65: 100.0}).token_ids) == {65}
    repeated = len(plain.token_ids) - len(set(plain.token_ids))
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        told = generate(engine, **penalty).token_ids  # type: ignore[arg-type]
        assert len(told) - len(set(told)) < repeated
    told = generate(engine, repetition_penalty=1.3, logprobs=0)
    assert told.token_ids != plain.token_ids
    assert told.logprobs[0] == pytest.approx(
        generate(engine, logit_bias={told.token_ids[0]: 9}, logprobs=0).logprobs[0]
    )


def test_min_tokens_holds_back_every_end(engine: LLMEngine) -> None:
    plain = generate(engine).token_ids
    place = plain.index(plain[5])
    early = generate(engine, stop_token_ids=[plain[5]])
    assert early.finish_reason == "stop" and len(early.token_ids) == place + 1
    late = generate(engine, stop_token_ids=[plain[5]], min_tokens=20)
    assert len(late.token_ids) > 20 and plain[5] not in late.token_ids[:20]
    text = generate(engine).text
    assert len(generate(engine, stop=[text[3:5]], min_tokens=30).token_ids) > 30
    held = generate(engine, logit_bias={0: 100.0}, ignore_eos=False, min_tokens=7)
    assert held.finish_reason == "stop" and len(held.token_ids) == 8


def test_prompt_logprobs_are_those_of_one_forward_pass(engine: LLMEngine) -> None:
    """In one chunk, in several, beside other requests, and although the prefix is in the cache."""
    prompt = list(("The with statement is used to wrap the execution of a block. " * 4).encode())
    with torch.no_grad():
        expected = engine.model(torch.tensor([prompt]))[0].log_softmax(-1)
    small = LLMEngine(engine.lm, max_num_seqs=4, num_blocks=128, max_num_batched_tokens=37)
    for each in (engine, engine, small):
        each.add_request("another one beside it", SamplingParams(max_tokens=8), "other")
        output = generate(each, prompt, prompt_logprobs=2, max_tokens=3)
        scores = output.prompt_logprobs
        assert len(scores) == len(prompt) and scores[0] is None and output.num_cached_tokens == 0
        for place in range(1, len(prompt)):
            assert scores[place][prompt[place]] == pytest.approx(expected[place - 1, prompt[place]].item(), abs=1e-3)
            assert len(scores[place]) in (2, 3)
        each.abort("other")
    assert generate(engine, prompt).prompt_logprobs is None


def test_a_prompt_may_only_be_scored(engine: LLMEngine) -> None:
    output = generate(engine, "import os", max_tokens=0, prompt_logprobs=0)
    assert output.token_ids == [] and output.finish_reason == "length" and output.text == ""
    assert [list(each) for each in output.prompt_logprobs[1:]] == [[token] for token in b"mport os"]
    assert generate(engine, "x", max_tokens=0, prompt_logprobs=0).prompt_logprobs == [None]
    engine.scheduler.check_integrity()


def test_preempted_requests_keep_their_scores(engine: LLMEngine) -> None:
    small = LLMEngine(engine.lm, max_num_seqs=4, num_blocks=8, block_size=16)
    prompts = [list(b"a with statement of its own"), list(b"another statement")]
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    together = small.generate(prompts, params)
    assert small.scheduler.num_preemptions > 0
    for prompt, output in zip(prompts, together, strict=True):
        alone = engine.generate([prompt], params)[0].prompt_logprobs
        assert output.prompt_logprobs is not None and alone is not None
        assert len(output.prompt_logprobs) == len(prompt)
        for ours, theirs in zip(output.prompt_logprobs[1:], alone[1:], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 0.0}, {"repetition_penalty": "x"}, {"presence_penalty": float("nan")},
        {"frequency_penalty": None}, {"logit_bias": {-1: 1.0}}, {"logit_bias": {1: float("inf")}},
        {"logit_bias": {1: "x"}}, {"min_tokens": 99}, {"min_tokens": -1}, {"prompt_logprobs": -1},
    ],
)  # fmt: skip
def test_what_is_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SamplingParams(**fields)


def test_a_bias_must_name_a_token_of_the_vocabulary(engine: LLMEngine) -> None:
    with pytest.raises(ValueError, match="logit_bias"):
        generate(engine, logit_bias={256: 1.0})
