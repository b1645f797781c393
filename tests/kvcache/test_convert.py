"""From multi-head to grouped-query attention and back: what pooling computes, and that training repairs it."""

from __future__ import annotations

import pytest
import torch

from labsupport.kvcache import (
    GroupedQueryAttention,
    KVCache,
    convert_to_gqa,
    expand_kv_heads,
    random_batches,
    to_grouped,
    uptrain,
)
from labsupport.lm import LanguageModel, load_lm, perplexity
from labsupport.lm.train import training_tokens


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("tiny", verbose=False)


def attention(num_kv_heads: int) -> GroupedQueryAttention:
    torch.manual_seed(0)
    return GroupedQueryAttention(48, 6, num_kv_heads).requires_grad_(False)


def test_pooling_is_the_mean_of_the_heads_of_a_group() -> None:
    mha = attention(6)
    gqa = to_grouped(mha, 2)
    heads = mha.k_proj.weight.view(6, 8, 48)
    torch.testing.assert_close(gqa.k_proj.weight.view(2, 8, 48)[0], (heads[0] + heads[1] + heads[2]) / 3)
    torch.testing.assert_close(gqa.k_proj.weight.view(2, 8, 48)[1], (heads[3] + heads[4] + heads[5]) / 3)
    assert (gqa.num_kv_heads, mha.num_kv_heads) == (2, 6)
    assert gqa(torch.randn(1, 4, 48)).shape == (1, 4, 48)
    assert torch.equal(gqa.q_proj.weight, mha.q_proj.weight)


def test_expanding_changes_nothing_and_pooling_takes_it_back(lm: LanguageModel) -> None:
    text = torch.tensor([lm.tokenizer.encode("The statement is executed")])
    mha = expand_kv_heads(lm.model, 6)
    assert mha.config.num_kv_heads == 6 and lm.model.config.num_kv_heads == 2
    torch.testing.assert_close(mha(text), lm.model(text), atol=1e-4, rtol=1e-4)
    back = convert_to_gqa(mha, 2)
    assert back.config == lm.model.config
    for (name, one), other in zip(lm.model.named_parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert back.lm_head.weight is back.embed_tokens.weight


def test_a_converted_model_works_with_caches_and_uptraining_repairs_it(lm: LanguageModel) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    mqa = convert_to_gqa(lm.model, 1)
    cache = KVCache.for_model(mqa, 1, 40)
    text = torch.tensor([lm.tokenizer.encode("The statement is executed")])
    mqa(text[:, :-1], cache)
    torch.testing.assert_close(mqa(text[:, -1:], cache), mqa(text)[:, -1:], atol=1e-4, rtol=1e-4)
    assert cache.nbytes == KVCache.for_model(lm.model, 1, 40).nbytes // 2

    text = training_tokens()
    train, held_out = text[:-1024], text[-1024:]
    original, pooled = perplexity(lm.model, held_out), perplexity(mqa, held_out)
    losses = uptrain(mqa, random_batches(train, 2, 96), steps=10, lr=2e-3)
    assert len(losses) == 10 and not mqa.training
    assert original < perplexity(mqa, held_out) < pooled / 1.2
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_heads_that_do_not_pool_are_named(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="num_kv_heads must divide the 2 there are; got 3"):
        convert_to_gqa(lm.model, 3)
    with pytest.raises(ValueError, match="multiple of 2 that divides 6; got 4"):
        expand_kv_heads(lm.model, 4)
