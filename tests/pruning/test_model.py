"""`prune_model`: each method on a whole Llama. Zeros are counted here, not read from the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labsupport.lm import corpus, load_lm, perplexity
from labsupport.lm.activations import layer_inputs
from labsupport.lm.config import LlamaConfig
from labsupport.lm.evaluate import token_loss
from labsupport.lm.folder import LanguageModel
from labsupport.lm.model import Llama
from labsupport.numerics.hessian import HessianAccumulator
from labsupport.pruning.magnitude import global_magnitude_masks, magnitude_mask
from labsupport.pruning.model import LINEARS
from labsupport.pruning.model import prune_model as typed_prune_model
from labsupport.pruning.sparsegpt import sparsegpt_prune
from labsupport.pruning.wanda import InputNorm, wanda_mask

prune_model: Any = typed_prune_model  # Any: the report is an attribute of the model
METHODS = ("magnitude", "wanda", "sparsegpt")


def linear_weights(model: Any) -> dict[str, Tensor]:
    return {name: module.weight for name, module in model.layers.named_modules() if isinstance(module, nn.Linear)}


@pytest.fixture(scope="module")
def small() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_layers=3, num_heads=3, num_kv_heads=1, head_dim=8
    )
    return Llama(config).eval()


@pytest.fixture(scope="module")
def windows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (length,), generator=generator) for length in (40, 40, 23)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("sparsity", "pattern"), [(0.5, None), (0.3, None), (0.5, "2:4"), (0.75, "1:4"), (0.0, None), (1.0, None)]
)
def test_new_model_with_exact_zeros(
    small: Any, windows: list[Tensor], method: str, sparsity: float, pattern: str | None
) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    pruned = prune_model(small, windows, method, sparsity, pattern, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert not hasattr(small, "pruning_report")
    for name, weight in linear_weights(pruned).items():
        zeros = weight == 0
        if pattern:
            assert (zeros.unflatten(1, (-1, 4)).sum(-1) == 4 * sparsity).all()
        elif method == "wanda":
            assert (zeros.sum(1) == round(sparsity * weight.shape[1])).all()
        else:
            assert int(zeros.sum()) == round(sparsity * weight.numel())
        layer = pruned.pruning_report.layer_sparsity[f"layers.{name}"]
        assert layer == int(zeros.sum()) / zeros.numel()
    for name, value in pruned.state_dict().items():  # embedding, norms, head
        if not any(linear in name for linear in LINEARS):
            assert torch.equal(value, before[name])
    assert pruned.lm_head.weight is pruned.embed_tokens.weight
    assert pruned(windows[0][None]).isfinite().all()


def test_magnitude_is_the_layers_own_mask(small: Any, windows: list[Tensor]) -> None:
    pruned = linear_weights(prune_model(small, windows, "magnitude", 0.4, progress=False))
    for name, weight in linear_weights(small).items():
        assert torch.equal(pruned[name], weight * magnitude_mask(weight, 0.4))


def test_magnitude_global_is_one_ranking(small: Any, windows: list[Tensor]) -> None:
    model = prune_model(small, windows, "magnitude", 0.4, scope="global", progress=False)
    weights, pruned = linear_weights(small), linear_weights(model)
    masks = global_magnitude_masks(weights, 0.4)
    assert all(torch.equal(pruned[name], weights[name] * masks[name]) for name in weights)
    total = sum(weight.numel() for weight in weights.values())
    assert sum(int((weight == 0).sum()) for weight in pruned.values()) == round(0.4 * total)
    assert model.pruning_report.sparsity == round(0.4 * total) / total
    assert len(set(model.pruning_report.layer_sparsity.values())) > 3


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("name", ["self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_each_layer_meets_already_pruned_inputs(small: Any, windows: list[Tensor], method: str, name: str) -> None:
    """A layer in the middle, from the inputs that the finished model gives it: all before it is pruned by then."""
    pruned = prune_model(small, windows, method, progress=False)
    name = f"layers.1.{name}"
    weight = small.get_submodule(name).weight.detach()
    batches = [layer_inputs(pruned, window[None], [name])[name] for window in windows]
    x = torch.cat(batches)
    if method == "wanda":
        norm = InputNorm(x.shape[1])
        norm.add(x)
        expected = weight * wanda_mask(weight, norm.norm)
    else:
        accumulator = HessianAccumulator(x.shape[1])
        accumulator.add(x)
        expected = sparsegpt_prune(weight, accumulator.hessian)
    result = pruned.get_submodule(name).weight
    assert ((result == 0) == (expected == 0)).float().mean() > 0.99  # sums in another order may turn a near tie
    assert torch.nn.functional.mse_loss(result, expected) < 1e-3 * weight.square().mean()
    # the dense model's inputs would give another result
    dense = torch.cat([layer_inputs(small, window[None], [name])[name] for window in windows])
    assert (dense - x).square().mean() > 1e-4 * x.square().mean()


def test_report(small: Any, windows: list[Tensor]) -> None:
    pruned = prune_model(small, windows, "wanda", 0.5, progress=False)
    report = pruned.pruning_report
    frame = report.to_frame()
    assert list(frame.index) == [f"layers.{i}.{name}" for i in range(3) for name in LINEARS]
    assert list(frame.columns) == ["shape", "sparsity", "num_zeros", "error", "seconds"]
    assert (frame["sparsity"] == 0.5).all() and report.sparsity == 0.5 and "50.0000%" in str(report)
    assert 0 < frame["seconds"].sum() <= report.seconds
    # a layer's error, recomputed from its inputs
    name = "layers.1.mlp.down_proj"
    x = torch.cat([layer_inputs(pruned, window[None], [name])[name] for window in windows])
    weight, new = (model.get_submodule(name).weight.detach() for model in (small, pruned))
    expected = (x @ (new - weight).T).square().sum() / (x @ weight.T).square().sum()
    assert report.error[name] == pytest.approx(float(expected), rel=1e-3)


def test_state_dict_loads_into_a_dense_model(small: Any, windows: list[Tensor]) -> None:
    pruned = prune_model(small, windows, "sparsegpt", progress=False)
    fresh = Llama(small.config).eval()
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh(windows[0][None]), pruned(windows[0][None]))


def test_bfloat16_stays_bfloat16(small: Any, windows: list[Tensor]) -> None:
    for method in METHODS:
        pruned = prune_model(small.bfloat16(), windows, method, pattern="2:4", progress=False)
        assert all(
            w.dtype == torch.bfloat16 and float((w == 0).float().mean()) == 0.5 for w in linear_weights(pruned).values()
        )
    small.float()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "random"}, "method must be magnitude, wanda or sparsegpt; got 'random'"),
        ({"sparsity": 1.2}, "sparsity must be a number"),
        ({"pattern": "2:4", "sparsity": 0.7}, "sparsity must be 0.5 with pattern '2:4', got 0.7"),
        ({"pattern": "8:16"}, "multiple of m = 16"),
        ({"pattern": "2in4"}, "pattern must look like"),
        ({"scope": "row"}, "scope must be layer or global"),
        ({"scope": "global", "method": "wanda"}, 'scope="global" needs'),
        ({"scope": "global", "pattern": "2:4"}, 'scope="global" needs'),
        ({"calibration": []}, "calibration must hold at least one window"),
        ({"calibration": torch.arange(9)}, "calibration must be a list"),
    ],
)
def test_bad_input_is_named(small: Any, windows: list[Tensor], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_model(**({"model": small, "calibration": windows, "progress": False} | options))


def test_a_model_with_other_layers_is_refused(windows: list[Tensor]) -> None:
    model: Any = Llama(LlamaConfig(50, 24, 40, 1, 3, 1, 8))
    model.layers[0].mlp.up_proj = nn.Identity()
    with pytest.raises(ValueError, match=r"nn.Linear as layers.0.mlp.up_proj, got Identity"):
        prune_model(model, windows)


# ------------------------------------------------------------------------------------------------ a trained model


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load_lm("tiny", verbose=False)


def tokens(lm: LanguageModel, part: str, count: int) -> Tensor:
    return torch.tensor(lm.tokenizer.encode(corpus(part)[: 8 * count]))[:count]  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_perplexity_of_tiny(tiny: LanguageModel, pattern: str | None) -> None:
    """Adjusting the weights that stay helps on any model. Wanda against magnitude is left to a real one (test below):
    `tiny` is too small to have the outlier activations that Wanda relies on."""
    calibration = list(tokens(tiny, "calibration", 8 * 256).view(8, 256))
    evaluation = tokens(tiny, "evaluation", 8 * 256)
    before = token_loss(tiny.model, evaluation, 256)
    added = {}
    for method in METHODS:
        pruned = prune_model(tiny.model, calibration, method, pattern=pattern, progress=False)
        added[method] = token_loss(pruned, evaluation, 256) - before
    assert 0 < added["sparsegpt"] < 0.7 * min(added["wanda"], added["magnitude"]), added


@pytest.mark.smollm2
@pytest.mark.slow
def test_perplexity_of_smollm2_falls_from_method_to_method() -> None:
    """The calibration of benchmarks/pruning.py: SparseGPT, which solves for 1536 inputs at a time, overfits to less."""
    lm = load_lm("smollm2-135m", verbose=False)
    calibration = list(tokens(lm, "calibration", 16 * 512).view(16, 512))
    evaluation = tokens(lm, "evaluation", 2 * 512)
    results = {"float": perplexity(lm.model, evaluation, 512)}
    for method in METHODS:
        results[method] = perplexity(prune_model(lm.model, calibration, method, progress=False), evaluation, 512)
    assert 1.2 * results["float"] < 1.2 * results["sparsegpt"] < results["wanda"] < 0.5 * results["magnitude"], results
