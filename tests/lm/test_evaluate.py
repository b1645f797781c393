from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labsupport.lm import corpus, generate, load_lm, perplexity
from labsupport.lm.evaluate import bigram_loss
from labsupport.lm.text import OVERLAP, _windows, training_documents


class NextToken(nn.Module):
    """Gives the token after t (t + 1) the probability `sure`, and the others the rest: its perplexity is known."""

    def __init__(self, vocab: int, sure: float) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.vocab, self.sure = vocab, sure

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rest = math.log((1 - self.sure) / (self.vocab - 1))
        logits = torch.full((*tokens.shape, self.vocab), rest)
        return logits.scatter(-1, ((tokens + 1) % self.vocab)[..., None], math.log(self.sure))


def test_perplexity_of_a_model_with_known_probabilities():
    counting = torch.arange(100) % 10
    assert perplexity(NextToken(10, 0.5), counting, seq_len=20) == pytest.approx(2.0, rel=1e-5)
    assert perplexity(NextToken(10, 0.1), counting, seq_len=7) == pytest.approx(10.0, rel=1e-5)


def test_windows_do_not_overlap_and_the_rest_is_left_out():
    seen: list[list[int]] = []

    class Recorder(NextToken):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(tokens[0].tolist())
            return super().forward(tokens)

    perplexity(Recorder(50, 0.5), torch.arange(25), seq_len=10)
    assert seen == [list(range(10)), list(range(10, 20))]
    seen.clear()
    perplexity(Recorder(50, 0.5), torch.arange(6), seq_len=10)
    assert seen == [list(range(6))]


def test_perplexity_leaves_the_mode_of_the_model_alone():
    model = NextToken(10, 0.5).train()
    perplexity(model, torch.arange(10))
    assert model.training


@pytest.mark.parametrize(
    ("token_ids", "seq_len", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), 8, "1-D int64"),
        (torch.zeros(9), 8, "1-D int64"),
        ([1, 2, 3], 8, "1-D int64 tensor; got <class 'list'>"),
        (torch.zeros(1, dtype=torch.int64), 8, "at least 2 tokens"),
        (torch.zeros(9, dtype=torch.int64), 1, "seq_len must be at least 2; got 1"),
    ],
)
def test_bad_input_is_named(token_ids, seq_len, message):
    with pytest.raises(ValueError, match=message):
        perplexity(NextToken(10, 0.5), token_ids, seq_len)


def test_the_corpus_is_split_and_training_never_quotes_the_evaluation_part():
    calibration, evaluation = corpus("calibration"), corpus("evaluation")
    assert len(calibration) / (len(calibration) + len(evaluation)) == pytest.approx(0.6, abs=1e-4)
    held_out = _windows(evaluation)
    documents = training_documents()
    assert sum(map(len, documents)) > 1_000_000
    for document in documents[:5]:
        for paragraph in document.split("\n\n"):
            assert held_out.isdisjoint(_windows(paragraph))
    quotation = "word " * OVERLAP
    assert not _windows(quotation).isdisjoint(_windows("before " + quotation + " after"))
    with pytest.raises(ValueError, match="calibration"):
        corpus("test")  # type: ignore[arg-type]


def test_bigram_loss_of_a_cycle_is_nearly_nothing_and_of_noise_is_log_vocab():
    cycle = torch.arange(40_000) % 8
    assert bigram_loss(cycle, cycle, 8) < 0.01
    noise = torch.randint(8, (40_000,), generator=torch.Generator().manual_seed(0))
    assert bigram_loss(noise, noise, 8) == pytest.approx(math.log(8), abs=0.01)


def test_tiny_is_well_under_a_bigram_and_writes_words():
    lm = load_lm("tiny", verbose=False)
    held_out = torch.tensor(lm.tokenizer.encode(corpus("evaluation")[:8192]))
    counted = torch.tensor(lm.tokenizer.encode(corpus("calibration")))
    assert math.log(perplexity(lm.model, held_out)) < bigram_loss(counted, held_out, 256) - 0.8
    prompt = torch.tensor([lm.tokenizer.encode("The statement ")])
    words = lm.tokenizer.decode(generate(lm.model, prompt, 200, temperature=0.5, seed=0)[0].tolist()).split()
    known = set(corpus("calibration").split())
    assert sum(word in known for word in words) / len(words) > 0.6


def test_greedy_generation_takes_the_most_likely_token():
    out = generate(NextToken(10, 0.5), torch.tensor([[3], [8]]), max_tokens=4)
    assert out.tolist() == [[4, 5, 6, 7], [9, 0, 1, 2]]


def test_generation_ends_when_every_row_has():
    out = generate(NextToken(10, 0.5), torch.tensor([[3], [5]]), max_tokens=9, eos_token_id=6)
    assert out.tolist() == [[4, 5, 6], [6, 6, 6]]


def test_sampling_follows_the_seed_and_the_probabilities():
    model, prompt = NextToken(4, 0.7), torch.zeros(4000, 1, dtype=torch.int64)
    first = generate(model, prompt, 1, temperature=1.0, seed=1)
    assert torch.equal(first, generate(model, prompt, 1, temperature=1.0, seed=1))
    assert not torch.equal(first, generate(model, prompt, 1, temperature=1.0, seed=2))
    assert (first == 1).float().mean().item() == pytest.approx(0.7, abs=0.03)
    cold = generate(model, prompt, 1, temperature=0.2, seed=1)
    assert (cold == 1).float().mean() > 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": torch.zeros(1, 0, dtype=torch.int64), "max_tokens": 1}, "at least one token"),
        ({"prompt": torch.zeros(1, 1, dtype=torch.int64), "max_tokens": -1}, "max_tokens must be 0 or more; got -1"),
        ({"prompt": torch.zeros(1, 1, dtype=torch.int64), "max_tokens": 1, "temperature": -0.5}, "temperature"),
        ({"prompt": torch.zeros(1, 1, dtype=torch.int64), "max_tokens": 1, "temperature": math.nan}, "temperature"),
    ],
)
def test_generation_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(NextToken(10, 0.5), **arguments)
