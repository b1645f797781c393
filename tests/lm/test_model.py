"""Our Llama against Hugging Face's, on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from labsupport.lm import ConcatCache, Llama, LlamaConfig, load_lm
from labsupport.lm.model import rotary_embedding, rotate, rotate_half

SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_layers": 3, "num_heads": 6}


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("tie", [True, False])
def test_logits_equal_transformers(num_kv_heads, tie, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=num_kv_heads, rope_theta=5e4, rms_norm_eps=1e-5, tie_word_embeddings=tie,
        )
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():  # far from the initial small values, where anything agrees
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')
    ours = load_lm(tmp_path, verbose=False).model
    tokens = torch.randint(97, (2, 33))
    expected = theirs(tokens).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(tokens), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.smollm2
def test_smollm2_logits_equal_transformers():
    transformers = pytest.importorskip("transformers")
    from labsupport.lm.download import cache_root

    lm = load_lm("smollm2-135m", verbose=False)
    theirs = transformers.LlamaForCausalLM.from_pretrained(cache_root() / "smollm2-135m", dtype=torch.float32)
    tokens = torch.tensor([lm.tokenizer.encode("The quick brown fox jumps over the lazy dog, and then it sleeps.")])
    with torch.no_grad():
        torch.testing.assert_close(lm.model(tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)


def test_a_later_token_changes_no_earlier_logit():
    model = random_llama()
    tokens = torch.randint(97, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 97
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_rotation_is_that_of_complex_numbers() -> None:
    """RoFormer, eq. 12 and 34: channels i and i + head_dim/2 are a complex number, multiplied by exp(j m theta_i)."""
    x = torch.randn(2, 3, 5, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    angles = positions[:, None, :, None] * 10_000.0 ** (-torch.arange(4) / 4)
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones(()), angles)
    found = rotate(x, rotary_embedding(positions, 8, 10_000.0))
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag), dim=-1))
    assert torch.equal(rotate_half(rotate_half(x)), -x)


def test_rotation_keeps_length_and_depends_on_distance_only():
    model = random_llama()
    query, key = torch.randn(2, 1, 1, 1, 8)
    scores = [
        (rotate(query, model.rotary(torch.tensor([[q]]))) * rotate(key, model.rotary(torch.tensor([[k]])))).sum()
        for q, k in ((3, 1), (103, 101), (3, 2))
    ]
    torch.testing.assert_close(rotate(query, model.rotary(torch.tensor([[5]]))).norm(), query.norm())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)
    assert abs(scores[0] - scores[2]) > 1e-3


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 6]])
def test_with_a_cache_in_any_chunks_equals_without(chunks):
    model = random_llama()
    tokens = torch.randint(97, (2, 12))
    cache = ConcatCache(model.config.num_layers)
    pieces = [model(piece, cache) for piece in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-4, rtol=1e-4)
    assert cache.length == 12


def test_a_pass_that_fails_leaves_the_cache_as_it_was():
    model = random_llama()
    tokens = torch.randint(97, (1, 9))
    cache = ConcatCache(model.config.num_layers)
    model(tokens[:, :6], cache)
    broken = model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens[:, 6:], cache)
    broken.remove()
    torch.testing.assert_close(model(tokens[:, 6:], cache), model(tokens)[:, 6:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"\[batch, time\]"),
        (torch.zeros(1, 3), "int64"),
        (torch.tensor([[0, 97]]), r"0\.\.96"),
        (torch.tensor([[-1, 2]]), r"0\.\.96"),
    ],
)
def test_bad_tokens_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        random_llama()(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 4}, "multiple of num_kv_heads"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"hidden_size": 50}, "multiple of num_heads"),
        ({"head_dim": 7}, "head_dim must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**(SIZES | {"num_kv_heads": 2} | change))


def random_llama() -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**SIZES, num_kv_heads=2)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)
