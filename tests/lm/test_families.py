"""Each family that `Llama` covers by a field or two: as transformers computes it, on every path through the package."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from families import FAMILIES, SIZES, hugging_face, ours

from labsupport.inference import LLMEngine, SamplingParams
from labsupport.kvcache import KVCache, PagedBatch, PagedKVCache, QuantizedKVCache
from labsupport.lm import ConcatCache, LanguageModel
from labsupport.lm.config_file import config_from_hugging_face
from labsupport.lm.config_writing import config_to_hugging_face
from labsupport.pruning import prune_llama, prune_model
from labsupport.quantization import quantize_model

PROMPTS = [[1, 2, 3], list(range(40, 80)), list(range(100, 119)), [7]]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, LanguageModel]:
    theirs = hugging_face(request.param)
    return theirs, ours(theirs)


@pytest.fixture(scope="module")
def lm(pair: tuple[Any, LanguageModel]) -> LanguageModel:
    return pair[1]


@pytest.fixture(scope="module")
def calibration() -> list[torch.Tensor]:
    torch.manual_seed(3)
    return list(torch.randint(1, 256, (6, 48)))


def tokens(count: int = 60, rows: int = 2) -> torch.Tensor:
    return torch.randint(1, 256, (rows, count), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_are_those_of_transformers(pair: tuple[Any, LanguageModel]) -> None:
    theirs, lm = pair
    torch.testing.assert_close(lm.model(tokens()), theirs(tokens()).logits, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_each_difference_matters(name: str) -> None:
    """So that the test above can fail: without what sets the family apart, the logits are others."""
    lm = ours(hugging_face(name))
    wanted = lm.model(tokens())
    plain = dataclasses.replace(
        lm.model.config, rope_scaling=None, sliding_window=None, unturned_layers=(), embedding_multiplier=1.0,
        attention_multiplier=None, residual_multiplier=1.0, logits_scaling=1.0, qk_norm=False, qkv_bias=False,
        output_bias=False, mlp_bias=False,
    )  # fmt: skip
    model = type(lm.model)(plain)
    model.load_state_dict(lm.model.state_dict(), strict=False)
    same = torch.allclose(model(tokens()), wanted, atol=1e-2)
    assert same == (name == "Llama 2")


def test_the_config_is_written_as_it_was_read(lm: LanguageModel) -> None:
    written = json.loads(json.dumps(config_to_hugging_face(lm.model.config, 0)))
    assert config_from_hugging_face(written) == lm.model.config


def test_transformers_reads_what_is_written(pair: tuple[Any, LanguageModel]) -> None:
    theirs, lm = pair
    written = config_to_hugging_face(lm.model.config, 0)
    again = type(theirs)(type(theirs.config).from_dict(written)).eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(tokens()).logits, theirs(tokens()).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["concat", "contiguous", "paged"])
def test_every_cache_continues_as_the_whole_pass_does(lm: LanguageModel, kind: str) -> None:
    """In pieces: a prompt, a chunk, and single tokens."""
    if lm.model.config.rope_scaling is not None and lm.model.config.rope_scaling.kind == "dynamic":
        pytest.skip("theta depends on the length so far: keys that are held were turned by another")
    model, given = lm.model, tokens(40)
    cache: Any = {
        "concat": lambda: ConcatCache(model.config.num_layers),
        "contiguous": lambda: KVCache.for_model(model, 2, 64),
        "paged": lambda: PagedKVCache.for_model(model, 32, block_size=4),
    }[kind]()
    if kind == "paged":
        for name in "ab":
            cache.add_sequence(name, [])
        cache = PagedBatch(cache, ["a", "b"])
    found = [model(part, cache) for part in given.split([13, 11, *[1] * 16], dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), model(given), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_quantized_cache_is_close(lm: LanguageModel) -> None:
    model, given = lm.model, tokens(40)
    held, exact = QuantizedKVCache.for_model(model, 2, 64, bits=8), KVCache.for_model(model, 2, 64)
    for part in given.split([13, 11, *[1] * 16], dim=1):
        error = (model(part, held) - model(part, exact)).norm() / model(part, ConcatCache(4)).norm()
    assert error < 0.1


@pytest.mark.parametrize("kv_cache_bits", [None, 8])
@pytest.mark.parametrize("fused", [True, False])
def test_the_engine_decodes_what_transformers_decodes(
    pair: tuple[Any, LanguageModel], kv_cache_bits: int | None, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, lm = pair
    if not fused:
        monkeypatch.setattr("labsupport.inference.fast.fused.has_numba", lambda: False)
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    options: dict[str, Any] = {} if kv_cache_bits is None else {"kv_cache_bits": kv_cache_bits}
    prompts = [prompt[:8] for prompt in PROMPTS] if "dynamic" in str(lm.model.config.rope_scaling) else PROMPTS
    engine = LLMEngine(lm, max_num_seqs=4, block_size=4, **options)
    for prompt, output in zip(prompts, engine.generate(prompts, params), strict=True):
        given = torch.tensor([prompt])
        with torch.no_grad():
            wanted = theirs.generate(
                given, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=None
            )[0, len(prompt) :].tolist()  # fmt: skip
        if kv_cache_bits is None:
            assert output.token_ids == wanted
        else:  # codes: the first tokens, at least
            assert output.token_ids[:1] == wanted[:1]


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "int8_dynamic", "int8_static"])
def test_every_quantizer_takes_it(lm: LanguageModel, calibration: list[torch.Tensor], method: str) -> None:
    smooth: dict[str, Any] = {"smooth": 0.5} if method.startswith("int8") else {"bits": 8}
    quantized: Any = quantize_model(lm.model, calibration, method=method, group_size=32, progress=False, **smooth)
    with torch.no_grad():
        exact, close = lm.model(tokens()), quantized(tokens())
    assert (exact - close).norm() / exact.norm() < 0.15
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    for output in LLMEngine(dataclasses.replace(lm, model=quantized), max_num_seqs=4).generate(
        [PROMPTS[0], PROMPTS[3]], params
    ):
        assert len(output.token_ids) == 4


@torch.no_grad()
def test_pruning_takes_it(lm: LanguageModel, calibration: list[torch.Tensor]) -> None:
    pruned: Any = prune_model(lm.model, calibration, method="wanda", sparsity=0.5, progress=False)
    assert 0.45 < float((pruned.layers[0].mlp.up_proj.weight == 0).float().mean()) < 0.55
    narrow = prune_llama(
        lm.model, calibration, mlp_sparsity=0.25, kv_groups=1, num_layers_removed=1, progress=False
    )  # fmt: skip
    assert narrow.config.num_layers == 3 and narrow.config.num_kv_heads == 1
    assert narrow(tokens()).isfinite().all()


@torch.no_grad()
def test_removing_nothing_changes_nothing(lm: LanguageModel, calibration: list[torch.Tensor]) -> None:
    from labsupport.pruning.llama import with_layers

    torch.testing.assert_close(with_layers(lm.model, range(4))(tokens()), lm.model(tokens()), atol=1e-5, rtol=0)
    last: Any = with_layers(lm.model, [0, 1, 3])
    layers: Any = lm.model.layers
    for name in ("turned", "window"):
        kept = [getattr(layers[index].self_attn, name) for index in (0, 1, 3)]
        assert [getattr(layer.self_attn, name) for layer in last.layers] == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "mixtral"}, "a mixture of experts; supported are llama, mistral"),
        ({"model_type": "qwen3_moe"}, "a mixture of experts"),
        ({"model_type": "gemma3_text"}, "another architecture \\(Gemma\\)"),
        ({"model_type": "deepseek_v3"}, "multi-head latent attention"),
        ({"model_type": None}, "not an architecture that we know"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type must be .*got 'longrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "needs low_freq_factor, high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_hugging_face({"model_type": "llama", **SIZES} | given)


def test_what_is_absent_means_what_transformers_takes_it_for() -> None:
    sizes = {name: SIZES[name] for name in list(SIZES)[:5]}
    llama = config_from_hugging_face({"model_type": "llama", **sizes})
    assert (llama.rms_norm_eps, llama.num_kv_heads, llama.tie_embeddings, llama.rope_theta) == (1e-6, 4, False, 1e4)
    smol = config_from_hugging_face({"model_type": "smollm3", **sizes})
    assert (smol.num_kv_heads, smol.tie_embeddings, smol.rope_theta, smol.unturned_layers) == (4, True, 2e6, (3,))
    assert config_from_hugging_face({"model_type": "mistral", **sizes, "num_key_value_heads": 2}).sliding_window == 4096


def test_theta_in_rope_parameters_wins_over_a_stale_one() -> None:
    for name in ("rope_parameters", "rope_scaling"):
        given = {"model_type": "llama", **SIZES, "rope_theta": 1e4, name: {"rope_theta": 5e5, "rope_type": "default"}}
        assert config_from_hugging_face(given).rope_theta == 5e5
