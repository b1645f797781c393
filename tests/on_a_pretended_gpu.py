"""Every chapter's public functions on a pretended GPU (pretended_gpu.py): they accept tokens that lie on the CPU, give
the numbers that the CPU gives, and seldom make the host wait."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import pretended_device, waits
from torch import Tensor, nn

from labsupport.distillation import Distiller, compress_lm
from labsupport.distillation.pipeline import small_student, training_pairs
from labsupport.distillation.targets import sequence_targets
from labsupport.inference import LLMEngine, SamplingParams
from labsupport.kvcache import generation
from labsupport.kvcache.convert import convert_to_gqa, expand_kv_heads, random_batches, uptrain
from labsupport.lm import LanguageModel, Llama, LlamaConfig, perplexity
from labsupport.lm.activations import layer_inputs
from labsupport.lm.evaluate import bigram_loss
from labsupport.lm.generate import generate
from labsupport.lm.tokenizer import ByteTokenizer
from labsupport.lm.train import initialize
from labsupport.pruning import prune_llama, prune_model
from labsupport.quantization import quantize_model
from labsupport.quantization.eight_bits import in_eight_bits
from labsupport.quantization.smoothquant import smooth_model

LINEARS = 14  # of the blocks of the model below

# The pretended device itself


def test_it_refuses_what_cuda_refuses() -> None:
    there = torch.ones(3, device=pretended_device())
    assert torch.equal((there * torch.tensor(2.0) + 1).cpu(), torch.full((3,), 3.0))  # a number may come from anywhere
    assert torch.equal(there[torch.tensor([0, 2])].cpu(), torch.ones(2))  # and so may an index
    here = torch.ones(3)
    for mix in (
        lambda: there + here, lambda: here + there, lambda: torch.cat([there, here]), lambda: here.add_(there),
        lambda: torch.where(here > 0, there, there), lambda: F.linear(there, here[None]),
        lambda: F.embedding(torch.tensor([0]), there[None]), lambda: there.index_select(0, torch.tensor([0])),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="same device"):
            mix()
    with pytest.raises(TypeError, match="can't convert"):
        there.numpy()


@pytest.mark.parametrize(
    ("times", "work"),
    [
        (1, lambda x: x.sum().item()), (1, lambda x: bool((x > 0).all())), (1, lambda x: float(x[0])),
        (1, lambda x: x.tolist()), (1, lambda x: x.cpu()), (1, lambda x: x.nonzero()), (1, lambda x: x[x > 0]),
        (1, lambda x: torch.tensor([1, 2], device=x.device)), (1, lambda x: torch.ones(3).to(x.device)),
        (1, lambda x: torch.equal(x, x)), (1, lambda x: x[torch.tensor([0])]), (1, lambda x: torch.ones(3).copy_(x)),
        (0, lambda x: torch.ones(3).to(x.device, non_blocking=True)), (0, lambda x: x.clone().masked_fill_(x > 0, 1.0)),
        (0, lambda x: x.repeat_interleave(torch.full_like(x, 2).long(), output_size=6)), (0, lambda x: x + 1),
        (1, lambda x: x.repeat_interleave(torch.full_like(x, 2).long())),
    ],
)  # fmt: skip
def test_it_counts_what_waits(times: int, work: Callable[[Tensor], object]) -> None:
    x = torch.ones(3, device=pretended_device())
    with waits() as counted:
        work(x)
    assert len(counted) == times, counted.places


# The chapters


@pytest.fixture(scope="module")
def here() -> LanguageModel:
    torch.manual_seed(0)
    model = initialize(Llama(LlamaConfig(256, 32, 64, 2, 4, 2))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1)
    return LanguageModel(model, ByteTokenizer(), "small", "a test", "float32")


@pytest.fixture(scope="module")
def there(here: LanguageModel) -> LanguageModel:
    model = copy.deepcopy(here.model).to(pretended_device())
    model.lm_head.weight = model.embed_tokens.weight  # `.to()` keeps one weight one on CUDA, and makes two of it here
    return LanguageModel(model, here.tokenizer, "small", "a test", "float32")


TEXT = torch.randint(0, 256, (512,), generator=torch.Generator().manual_seed(1))
WINDOWS = list(TEXT.split(64)[:2])
PROMPT = TEXT[None, :8]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TEXT[None, :64].to(model.embed_tokens.weight.device))


def trained(lm: LanguageModel, **options: Any) -> list[float]:
    distiller = Distiller(small_student(lm.model, 1), lm.model, batch_size=4, **options)
    history = distiller.train(training_pairs(TEXT, 32), 2, progress=False)
    return [record["loss"] for record in history] + list(distiller.evaluate(training_pairs(TEXT, 32)).values())


def compressed(lm: LanguageModel) -> Tensor:
    sizes: dict[str, Any] = {
        "num_layers": 1,
        "steps": 2,
        "recovery_steps": 1,
        "batch_size": 2,
        "seq_len": 32,
        "bits": 2,
    }
    table = compress_lm(
        lm.model, lm.tokenizer, **sizes, evaluation_windows=1, repeats=1, progress=False, method="rtn"
    ).to_frame()
    return torch.tensor(table[["parameters", "zeros", "bytes_on_disk", "perplexity"]].to_numpy(float))


def in_the_engine(lm: LanguageModel, bits: int | None = None, **params: Any) -> list[list[int]]:
    engine = LLMEngine(lm, max_num_seqs=4, kv_cache_bits=bits, fused=False, num_blocks=64)
    for prompt in ("with", "import ", "def f(x)"):
        engine.add_request(prompt, SamplingParams(max_tokens=4, ignore_eos=True, **params))
    found: dict[Any, list[int]] = {}
    while engine.has_unfinished:
        with waits() as counted:
            outputs = engine.step()
        assert len(counted) <= 2, counted.places
        found |= {output.request_id: output.token_ids for output in outputs}
    return list(found.values())


WORKS: dict[str, tuple[float, Any]] = {  # how often the host may wait, and the work
    "perplexity": (1, lambda lm: perplexity(lm.model, TEXT, 64)),
    "bigram loss": (2, lambda lm: bigram_loss(TEXT.to(lm.model.embed_tokens.weight.device), TEXT, 256)),
    "generate": (2, lambda lm: generate(lm.model, PROMPT, 4)),
    "generate, sampled": (2, lambda lm: generate(lm.model, PROMPT, 4, 1.0, seed=3)),
    "generate to the end of text": (6, lambda lm: generate(lm.model, PROMPT, 4, eos_token_id=5)),
    "inputs of a layer": (1, lambda lm: list(layer_inputs(lm.model, PROMPT, ["layers.1.mlp.up_proj"]).values())),
    **{f"quantize, {method}": (4 * LINEARS, lambda lm, method=method: logits(quantize_model(
        lm.model, WINDOWS, method, group_size=32, progress=False)))
        for method in ("rtn", "awq", "int8_dynamic", "int8_static")},
    **{f"quantize, gptq {options}": (4 * LINEARS, lambda lm, options=options: logits(quantize_model(
        lm.model, WINDOWS, "gptq", group_size=32, progress=False, **options)))
        for options in ({}, {"act_order": True}, {"symmetric": True})},
    "quantize, 3 bits": (4 * LINEARS, lambda lm: logits(quantize_model(lm.model, WINDOWS, "rtn", 3, progress=False))),
    "quantize, smooth, head": (4 * (LINEARS + 1), lambda lm: logits(quantize_model(
        lm.model, WINDOWS, "int8_dynamic", smooth=True, head_bits=8, progress=False))),
    "smoothquant": (4 * LINEARS, lambda lm: logits(smooth_model(lm.model, WINDOWS))),
    "smoothquant, searched": (4 * LINEARS, lambda lm: logits(smooth_model(lm.model, WINDOWS, None))),
    **{f"eight bits, {number}": (99, lambda lm, number=number: logits(in_eight_bits(lm.model, number, "down_proj")))
       for number in ("int8", "e4m3")},
    **{f"prune, {method} {pattern}": (4 * LINEARS, lambda lm, method=method, pattern=pattern: logits(prune_model(
        lm.model, WINDOWS, method, 0.5, pattern, progress=False)))
        for method in ("magnitude", "wanda", "sparsegpt") for pattern in (None, "2:4")},
    "prune globally": (4 * LINEARS, lambda lm: logits(prune_model(lm.model, WINDOWS, scope="global", progress=False))),
    **{f"prune_llama, {options}": (99, lambda lm, options=options: logits(prune_llama(
        lm.model, WINDOWS, progress=False, **options)))
        for options in ({}, {"importance": "taylor"}, {"kv_groups": 1}, {"num_layers_removed": 1})},
    "distil": (99, trained),
    "distil features": (99, partial(trained, objective="mixed", feature_layers=[("layers.0", "layers.1")])),
    "sequence targets": (2, lambda lm: list(sequence_targets(lm.model, PROMPT, 4, 1.0, 3))),
    "compress_lm": (9999, compressed),
    "pooled heads": (2, lambda lm: uptrain(convert_to_gqa(lm.model, 1), random_batches(TEXT, 2, 32), 2)),
    "repeated heads": (2, lambda lm: logits(expand_kv_heads(lm.model, 4))),
    **{f"cache, {kind}": (2 * 4, lambda lm, kind=kind: generation.generate(lm.model, [[1, 2, 3], [5, 6]], 4, kind))
       for kind in generation.KINDS},
    "cache, in chunks": (2 * 4, lambda lm: generation.generate(lm.model, [[1, 2, 3, 4], [5]], 4, chunk_size=2)),
    **{f"engine, {bits} {params}": (2 * 4 + 1, partial(in_the_engine, bits=bits, **params))
       for bits in (None, 8, 4) for params in (
           {"temperature": 0.0}, {"seed": 1}, {"seed": 1, "top_p": 0.9, "top_k": 20},
           {"temperature": 0.0, "logprobs": 2, "repetition_penalty": 1.2, "presence_penalty": 0.5, "min_tokens": 2,
            "logit_bias": {5: 1.0}})},
}  # fmt: skip


LONG = ("compress_lm",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in WORKS])
def test_a_gpu_gives_the_numbers_of_a_cpu(name: str, here: LanguageModel, there: LanguageModel) -> None:
    most, work = WORKS[name]
    wanted = work(here)
    with waits() as counted:
        given = work(there)
    assert len(counted) <= most, counted.places
    assert_same(given, wanted)


def assert_same(given: Any, wanted: Any) -> None:
    if isinstance(wanted, Tensor) and not wanted.is_floating_point():
        assert torch.equal(given.cpu(), wanted)
    elif isinstance(wanted, Tensor):
        # Values that lie on the border between two codes fall to either side, and later layers compensate differently.
        assert (given.cpu() - wanted).norm() <= 0.02 * wanted.norm()
    elif isinstance(wanted, float):
        assert given == pytest.approx(wanted, rel=1e-3)
    elif isinstance(wanted, list):
        assert len(given) == len(wanted)
        for each, other in zip(given, wanted, strict=True):
            assert_same(each, other)
    else:
        assert given == wanted


def test_tokens_elsewhere_are_refused_with_a_reason(there: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"tokens must be where the model is, on pretended:0; got them on cpu"):
        there.model(PROMPT)


def test_parameters_stay_parameters(there: LanguageModel) -> None:
    linear = nn.Linear(2, 2).to(pretended_device())
    assert isinstance(linear.weight, nn.Parameter) and isinstance(copy.deepcopy(linear).weight, nn.Parameter)
    assert next(there.model.parameters()).device == pretended_device()
