"""The sampler against probabilities worked out with plain Python, and each row against itself alone."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.inference.sampling import SamplingParams, sample_tokens, token_logprobs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 2.5), ("temperature", -0.1), ("temperature", math.nan),
        ("temperature", math.inf), ("top_k", -1), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.01), ("seed", -3),
        ("seed", "x"), ("stop", ("",)), ("stop", (3,)), ("stop_token_ids", (-1,)), ("stop_token_ids", ("a",)),
        ("ignore_eos", 1), ("logprobs", -1), ("max_tokens", True), ("temperature", "hot"),
    ],
)  # fmt: skip
def test_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        SamplingParams(**{name: value})
    given_value = value[0] if isinstance(value, tuple) else value
    assert repr(given_value) in str(caught.value) and "must be" in str(caught.value)


def test_stop_is_one_string_or_several() -> None:
    assert SamplingParams(stop="abc").stop == ("abc",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)
    assert hash(SamplingParams(stop=["a"])) == hash(SamplingParams(stop=("a",)))


def allowed_by_hand(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Token -> probability after temperature, top-k, top-p, in float64 and without ties."""
    weights = [math.exp((x - max(logits)) / params.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    order = order[: params.top_k] if params.top_k else order
    total, kept, mass = sum(weights[i] for i in order), [], 0.0
    for i in order:
        kept.append(i)
        mass += weights[i] / total
        if mass >= params.top_p:
            break
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), vocab=st.sampled_from([5, 40, 700]), temperature=st.sampled_from([0.3, 1.0, 3.0]),
       top_k=st.sampled_from([0, 1, 3, 300, 5000]), top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]))  # fmt: skip
def test_distribution_is_that_of_the_definition(
    seed: int, vocab: int, temperature: float, top_k: int, top_p: float
) -> None:
    """A grid of uniform numbers maps to each token in proportion to its probability."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    n = 400
    tokens = sample_tokens(logits.expand(n, -1), [params] * n, [(i + 0.5) / n for i in range(n)])
    wanted = allowed_by_hand(logits.double().tolist(), params)
    counts = Counter(tokens.tolist())
    for token in set(counts) | set(wanted):
        assert abs(counts[token] / n - wanted.get(token, 0)) <= 1 / n + 2e-3
    assert tokens.tolist() == sorted(tokens.tolist()), "the larger number never picks the smaller id"


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1, 0)])
def test_a_token_of_probability_zero_is_never_taken(uniform: float) -> None:
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [400, 600]] = torch.tensor([2.0, 1.0])
    assert sample_tokens(logits, [SamplingParams()], [uniform]).item() in (400, 600)
    assert sample_tokens(logits, [SamplingParams(top_k=1)], [uniform]).item() == 400
    assert sample_tokens(logits, [SamplingParams(top_p=0.1)], [uniform]).item() == 400


def test_equal_logits_have_equal_fate() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    params = [SamplingParams(top_k=1)] * 2
    tokens = sample_tokens(logits.expand(2, -1), params, [0.25, 0.75])
    assert tokens.tolist() == [1, 2]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1e-9, 0.7, 2.0]), st.sampled_from([0, 1, 7]),
                          st.sampled_from([0.2, 0.9, 1.0])), min_size=1, max_size=8), st.integers(0, 99))  # fmt: skip
def test_a_row_is_sampled_as_if_alone(rows: list[tuple[float, int, float]], seed: int) -> None:
    logits = 2 * torch.randn(len(rows), 500, generator=torch.Generator().manual_seed(seed))
    params = [SamplingParams(temperature=t, top_k=k, top_p=p) for t, k, p in rows]
    uniforms = [random.Random(seed + i).random() for i in range(len(rows))]
    together = sample_tokens(logits, params, uniforms).tolist()
    for i, each in enumerate(params):
        assert sample_tokens(logits[i : i + 1], [each], [uniforms[i]]).item() == together[i]
        if each.temperature < 1e-3 or each.top_k == 1:
            assert together[i] == logits[i].argmax()


def test_sampling_does_not_change_the_logits() -> None:
    logits = torch.randn(3, 50)
    before = logits.clone()
    sample_tokens(logits, [SamplingParams(top_k=2)] * 3, [0.1, 0.2, 0.3])
    assert torch.equal(logits, before)


def test_bad_input_of_the_sampler() -> None:
    with pytest.raises(ValueError, match="params and uniforms must be 2"):
        sample_tokens(torch.zeros(2, 5), [SamplingParams()], [0.5])
    with pytest.raises(ValueError, match="NaN"):
        sample_tokens(torch.tensor([[0.0, math.nan]]), [SamplingParams(temperature=0)], [0.5])


def test_logprobs_are_of_the_model_and_hold_the_token_taken() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4, -1)
    reference = [x - math.log(sum(math.exp(y) for y in range(4))) for x in range(4)]
    rows = token_logprobs(logits, [0, 3, 1, 2], [2, 2, None, 0])
    assert rows[2] is None
    assert [list(row) for row in rows if row is not None] == [[3, 2, 0], [3, 2], [2]]
    for row in rows:
        for token, value in (row or {}).items():
            assert value == pytest.approx(reference[token], abs=1e-6)
    assert token_logprobs(logits[:1], [1], [99])[0] == pytest.approx(dict(enumerate(reference)), abs=1e-6)
