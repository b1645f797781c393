"""Structured pruning of a Llama against the dense model with what was removed zeroed by hand."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labsupport.lm import corpus, load_lm
from labsupport.lm.cache import ConcatCache
from labsupport.lm.config import LlamaConfig
from labsupport.lm.evaluate import token_loss
from labsupport.lm.folder import save_lm
from labsupport.lm.model import Llama
from labsupport.pruning.llama import keep_heads, layer_scores, neuron_scores
from labsupport.pruning.llama import prune_llama as typed_prune_llama

prune_llama: Any = typed_prune_llama  # Any: the report is an attribute of the model
CONFIG = LlamaConfig(
    vocab_size=50, hidden_size=24, intermediate_size=40, num_layers=3, num_heads=6, num_kv_heads=3, head_dim=8
)


@pytest.fixture(scope="module")
def small() -> Any:
    torch.manual_seed(0)
    model = Llama(CONFIG).eval()
    for parameter in model.parameters():  # norms other than ones, and attention that is not uniform
        parameter.data = torch.randn(parameter.shape) * 0.3 + (parameter.dim() == 1)
    return model


@pytest.fixture(scope="module")
def windows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (length,), generator=generator) for length in (40, 40, 23)]


def group(pruned: Any, name: str) -> Any:
    return next(each for each in pruned.pruning_report.groups if name in each.names)


def removed(pruned: Any, name: str) -> list[int]:
    found = group(pruned, name)
    return sorted(set(range(found.num_channels)) - set(found.kept.tolist()))


@pytest.mark.parametrize("importance", ["activation", "taylor"])
@pytest.mark.parametrize(
    ("options", "sizes"),  # intermediate_size, num_heads, num_kv_heads, num_layers
    [
        ({}, (28, 6, 3, 3)),
        ({"mlp_sparsity": 1.0}, (1, 6, 3, 3)),
        ({"mlp_sparsity": 0.0, "kv_groups": 1}, (40, 4, 2, 3)),
        ({"mlp_sparsity": 0.0, "heads_per_group": 1}, (40, 3, 3, 3)),
        ({"mlp_sparsity": 0.0, "num_layers_removed": 1}, (40, 6, 3, 2)),
        ({"mlp_sparsity": 0.5, "kv_groups": 2, "heads_per_group": 1, "num_layers_removed": 2}, (20, 1, 1, 1)),
        ({"mlp_sparsity": 0.0}, (40, 6, 3, 3)),
        ({"mlp_sparsity": 0.33, "multiple_of": 8}, (24, 6, 3, 3)),
        ({"mlp_sparsity": 0.95, "multiple_of": 16}, (2, 6, 3, 3)),
    ],
)
def test_equals_the_dense_model_with_its_parts_zeroed(
    small: Any, windows: list[Tensor], importance: str, options: dict, sizes: tuple[int, ...]
) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    pruned = prune_llama(small, windows, importance=importance, progress=False, **options)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters())
    config = pruned.config
    assert (config.intermediate_size, config.num_heads, config.num_kv_heads, config.num_layers) == sizes
    assert config.head_dim == 8 and config.hidden_size == 24

    masked: Any = copy.deepcopy(small)
    kept_layers = group(pruned, "layers").kept.tolist() if sizes[3] < 3 else [0, 1, 2]
    assert kept_layers == sorted(kept_layers)
    masked.layers = nn.ModuleList(masked.layers[i] for i in kept_layers)
    with torch.no_grad():
        for i, layer in enumerate(masked.layers):
            if sizes[0] < 40:
                layer.mlp.down_proj.weight[:, removed(pruned, f"layers.{i}.mlp.up_proj")] = 0
            if sizes[1] < 6:
                columns = layer.self_attn.o_proj.weight.view(24, 6, 8)
                columns[:, removed(pruned, f"layers.{i}.self_attn.q_proj")] = 0
                for lost in removed(pruned, f"layers.{i}.self_attn.v_proj"):
                    assert {2 * lost, 2 * lost + 1} <= set(removed(pruned, f"layers.{i}.self_attn.q_proj"))
    tokens = windows[0][None]
    assert torch.allclose(pruned(tokens), masked(tokens), atol=1e-4)
    assert pruned.lm_head.weight is pruned.embed_tokens.weight
    assert pruned.lm_head.weight.data_ptr() != small.lm_head.weight.data_ptr()
    # with a cache, whose layers are counted from 0
    cache = ConcatCache(len(pruned.layers))
    steps = [pruned(part, cache) for part in tokens.split((30, 1, 9), dim=1)]
    assert torch.allclose(torch.cat(steps, 1), pruned(tokens), atol=1e-4)


def test_parts_that_do_nothing_go_first_and_change_nothing(small: Any, windows: list[Tensor]) -> None:
    model = copy.deepcopy(small)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            layer.mlp.down_proj.weight[:, i : i + 12] = 0
            layer.self_attn.o_proj.weight.view(24, 3, 2, 8)[:, i] = 0  # a whole KV group
            layer.self_attn.o_proj.weight.view(24, 3, 2, 8)[:, :, 1] = 0  # the second head of all others
        layer = model.layers[1]
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    options = {"mlp_sparsity": 0.3, "kv_groups": 1, "heads_per_group": 1, "num_layers_removed": 1}
    for importance in ("activation", "taylor"):
        pruned = prune_llama(model, windows, importance=importance, progress=False, **options)
        assert group(pruned, "layers").kept.tolist() == [0, 2]
        assert removed(pruned, "layers.1.mlp.gate_proj") == list(range(2, 14))
        assert group(pruned, "layers.1.self_attn.q_proj").kept.tolist() == [0, 2]
        assert torch.allclose(pruned(windows[0][None]), model(windows[0][None]), atol=1e-4)


def test_neurons_by_activation_are_those_that_down_would_miss(small: Any, windows: list[Tensor]) -> None:
    """The score computed once more: Σ x² over all tokens, times the power of the neuron's column."""
    name = "layers.1.mlp.down_proj"
    x = torch.cat([_input_of(small, name, window) for window in windows])
    score = x.square().sum(0) * small.get_submodule(name).weight.square().sum(0)
    pruned = prune_llama(small, windows, 0.4, progress=False)
    assert removed(pruned, "layers.1.mlp.up_proj") == sorted(score.argsort()[:16].tolist())


def test_taylor_is_the_change_of_the_loss_to_first_order(small: Any, windows: list[Tensor]) -> None:
    """Against finite differences: what is about to be removed is scaled down slightly."""
    window, name = windows[0], "layers.2.mlp.down_proj"

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(window[None])[0, :-1].double(), window[1:]))

    model, slopes = copy.deepcopy(small).double(), []
    weight, step = model.get_submodule(name).weight.data, 1e-4
    for neuron in range(40):
        column = weight[:, neuron].clone()
        ends = []
        for factor in (1 + step, 1 - step):
            weight[:, neuron] = column * factor
            ends.append(loss(model))
        weight[:, neuron] = column
        slopes.append(abs(ends[0] - ends[1]))
    pruned = prune_llama(small.double(), [window], 0.4, importance="taylor", progress=False)
    small.float()
    assert removed(pruned, "layers.2.mlp.up_proj") == sorted(torch.tensor(slopes).argsort()[:16].tolist())


def test_layer_scores(small: Any, windows: list[Tensor]) -> None:
    states = [[], [], []]  # type: list[list[float]]
    for window in windows:
        x, rotary = small.embed(window[None])
        for i, layer in enumerate(small.layers):
            y = layer(x, rotary)
            states[i].append(1 - ((x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)).mean().item())
            x = y
    expected = torch.tensor(states).mean(1)
    assert torch.allclose(layer_scores(small, windows), expected, atol=1e-5)
    pruned = prune_llama(small, windows, 0.0, num_layers_removed=1, progress=False)
    assert removed(pruned, "layers") == [int(expected.argmin())]


def test_heads_go_by_group_first() -> None:
    """A strong head does not save a weak group, and every group left loses the same number."""
    by_head = torch.tensor([1.0, 9, 5, 6, 8, 7])  # groups of 10, 11 and 15
    scores = (by_head[:, None] / 8).expand(6, 8).reshape(1, 48)
    heads, groups = keep_heads(scores, CONFIG, 1, 1, taylor=False)
    assert groups.tolist() == [False, True, True] and heads.tolist() == [False, False, False, True, True, False]


# ------------------------------------------------------------------------------------------------ a trained model


def tokens_of(lm: Any, part: str, count: int) -> Tensor:
    return torch.tensor(lm.tokenizer.encode(corpus(part)[:count]))[:count]  # type: ignore[arg-type]


def test_tiny_saves_loads_and_shrinks_as_computed(tmp_path: Path) -> None:
    lm = load_lm("tiny", verbose=False)
    calibration = list(tokens_of(lm, "calibration", 4 * 128).view(4, 128))
    pruned = prune_llama(lm.model, calibration, 0.3, kv_groups=1, num_layers_removed=1, progress=False)
    save_lm(lm, tmp_path / "dense")
    save_lm(replace(lm, model=pruned), tmp_path / "pruned")
    again = load_lm(tmp_path / "pruned", verbose=False)
    assert again.model.config == pruned.config
    assert torch.equal(again.model(calibration[0][None]), pruned(calibration[0][None]))
    Llama(pruned.config).load_state_dict(pruned.state_dict())

    config = lm.model.config
    assert config.head_dim is not None
    hidden, heads = config.hidden_size, config.num_heads // config.num_kv_heads
    neurons = round(0.3 * config.intermediate_size)
    a_layer = (
        3 * hidden * config.intermediate_size
        + 2 * hidden
        + 2 * hidden * config.head_dim * (config.num_heads + config.num_kv_heads)
    )
    lost = a_layer + (config.num_layers - 1) * (3 * hidden * neurons + 2 * hidden * config.head_dim * (heads + 1))
    report = pruned.pruning_report
    assert report.parameters_before - report.parameters == lost
    assert report.bytes_before - report.nbytes == 4 * lost  # in memory, float32
    sizes = []
    for name in ("dense", "pruned"):
        content = (tmp_path / name / "model.safetensors").read_bytes()
        sizes.append(len(content) - 8 - int.from_bytes(content[:8], "little"))
    assert sizes[0] - sizes[1] == 4 * lost


def test_importance_beats_chance_on_tiny() -> None:
    lm = load_lm("tiny", verbose=False)
    calibration = list(tokens_of(lm, "calibration", 4 * 256).view(4, 256))
    evaluation = tokens_of(lm, "evaluation", 4 * 256)
    losses = {}
    for importance in ("activation", "taylor"):
        pruned = prune_llama(lm.model, calibration, 0.3, importance=importance, progress=False)
        losses[importance] = token_loss(pruned, evaluation, 256)
    generator = torch.Generator().manual_seed(0)
    chance: Any = copy.deepcopy(lm.model)
    for layer in chance.layers:
        lost = torch.randperm(layer.mlp.down_proj.in_features, generator=generator)[: round(0.3 * 512)]
        layer.mlp.down_proj.weight.data[:, lost] = 0
    dense, random = token_loss(lm.model, evaluation, 256), token_loss(chance, evaluation, 256)
    assert all(dense < loss < dense + 0.5 * (random - dense) for loss in losses.values()), (dense, losses, random)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp_sparsity": 1.5}, "sparsity must be"),
        ({"kv_groups": 3}, "kv_groups must be an integer from 0 to 2 \\(the model has 3\\); got 3"),
        ({"heads_per_group": 2}, "heads_per_group must be an integer from 0 to 1"),
        ({"num_layers_removed": -1}, "num_layers_removed must be an integer from 0 to 2"),
        ({"multiple_of": 0}, "multiple_of must be a positive integer; got 0"),
        ({"kv_groups": True}, "kv_groups must be an integer"),
        ({"importance": "magnitude"}, "importance must be activation or taylor"),
        ({"calibration": []}, "calibration must hold at least one window"),
        ({"model": nn.Linear(2, 2)}, r"model must be a labsupport\.lm\.Llama"),
    ],
)
def test_bad_input_is_named(small: Any, windows: list[Tensor], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_llama(**({"model": small, "calibration": windows, "progress": False} | options))


def _input_of(model: Any, name: str, window: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    with torch.no_grad():
        model(window[None])
    handle.remove()
    return next(itertools.chain(found))


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_neuron_scores_are_what_prune_llama_ranks(small, windows, importance):
    """Removing all but one neuron of each layer leaves the one with the highest score."""
    scores = neuron_scores(small, windows, importance)
    pruned = prune_llama(small, windows, 1.0, importance=importance, progress=False)
    kept = [each.kept.tolist() for each in pruned.pruning_report.groups]
    assert kept == [[int(score.argmax())] for score in scores]
