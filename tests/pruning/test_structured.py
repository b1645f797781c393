"""Structured pruning. The oracle: a pruned network computes what the dense one does with the columns zeroed by which
layers read the removed channels, and those columns are found here by hand for each network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ConvNet, Residual, images, parameters, removed, settled
from torch import Tensor, nn

from labsupport.pruning.importance import IMPORTANCES
from labsupport.pruning.structured import keep_channels
from labsupport.pruning.structured import prune_channels as typed_prune_channels

prune_channels: Any = typed_prune_channels  # Any: the report is an attribute of the model


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_conv_bn_relu_conv_flatten_linear(importance: str, sparsity: float) -> None:
    model, x = settled(ConvNet()), images()
    before = copy.deepcopy(model.state_dict())
    pruned = prune_channels(model, x, sparsity, importance, loss=lambda y: y.square().sum())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report, masked = pruned.pruning_report, copy.deepcopy(model)
    with torch.no_grad():
        masked[3].weight[:, removed(report, "0")] = 0
        masked[7].weight.view(20, 12, 16)[:, removed(report, "3")] = 0  # each channel is 16 features
        masked[9].weight[:, removed(report, "7")] = 0
    x = images(seed=1)
    assert torch.allclose(pruned(x), masked(x), atol=1e-5)
    assert not torch.allclose(pruned(x), model(x), atol=1e-3)
    kept = [16 - round(16 * sparsity), 12 - round(12 * sparsity), 20 - round(20 * sparsity)]
    assert [group.num_kept for group in report.groups] == kept
    assert [pruned[0].out_channels, pruned[3].in_channels, pruned[3].out_channels] == [kept[0], *kept[:2]]
    assert (pruned[1].num_features, pruned[7].in_features, pruned[9].in_features) == (kept[0], 16 * kept[1], kept[2])
    assert pruned[9].out_features == 5 and pruned[0].in_channels == 3


def test_channels_that_are_zero_already_change_nothing() -> None:
    """A masked dense network, its channels zeroed at their source, gives what the pruned one gives, exactly."""
    model, x = settled(ConvNet()), images()
    with torch.no_grad():
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "7.weight", "7.bias"):
            model.get_parameter(name)[::2] = 0
    pruned = prune_channels(model, x, 0.5)
    assert torch.allclose(pruned(x), model(x), atol=1e-6)
    assert [group.kept.tolist() for group in pruned.pruning_report.groups] == [
        list(range(1, size, 2)) for size in (16, 12, 20)
    ]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_residual_concat_depthwise(importance: str) -> None:
    torch.manual_seed(0)
    model, x = settled(Residual()), images()
    pruned = prune_channels(model, x, 0.5, importance, loss=lambda y: y.square().sum())
    report, masked = pruned.pruning_report, copy.deepcopy(model)
    assert [group.names for group in report.groups] == [("conv1", "conv2"), ("block.2",), ("last",)]
    stream, inner, last = (removed(report, name) for name in ("conv1", "block.2", "last"))
    assert (len(stream), len(inner), len(last)) == (4, 3, 2)
    with torch.no_grad():
        masked.block[2].weight[:, stream] = 0
        masked.conv2.weight[:, inner] = 0
        masked.last.weight[:, inner] = 0
        masked.last.weight[:, [6 + 2 * channel + j for channel in stream for j in (0, 1)]] = 0
        masked.head.weight[:, last] = 0
    x = images(seed=1)
    assert torch.allclose(pruned(x), masked(x), atol=1e-5)
    assert (pruned.depthwise.groups, pruned.depthwise.in_channels, pruned.depthwise.out_channels) == (4, 4, 8)
    assert pruned.block[0].num_features == 4 and pruned.last.in_channels == 3 + 8


def test_mlp_of_a_sequence_and_a_normalized_stream() -> None:
    """A norm across channels keeps them all: its statistics would change without some of them."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Linear(7, 8), nn.LayerNorm(8)
            self.gate, self.up, self.down = nn.Linear(8, 20), nn.Linear(8, 20), nn.Linear(20, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            y = self.norm(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    torch.manual_seed(0)
    model, x = Block(), torch.randn(2, 5, 7)
    pruned = prune_channels(model, x, 0.3, "activation")
    (group,) = pruned.pruning_report.groups
    assert group.names == ("gate", "up") and group.num_kept == 14
    with torch.no_grad():
        lost = sorted(set(range(20)) - set(group.kept.tolist()))
        expected = copy.deepcopy(model)
        expected.down.weight[:, lost] = 0
    assert torch.allclose(pruned(x), expected(x), atol=1e-6)


@settings(max_examples=25)
@given(data=st.data())
def test_any_chain_equals_its_mask(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    sparsity = data.draw(st.floats(0, 1))
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in zip([4, *widths], [*widths, 3], strict=True):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model: Any = nn.Sequential(*layers)
    x = torch.randn(6, 4)
    pruned = prune_channels(model, x, sparsity)
    masked = copy.deepcopy(model)
    for i, (width, group) in enumerate(zip(widths, pruned.pruning_report.groups, strict=True)):
        assert group.num_kept == max(1, width - round(width * sparsity))
        norms = model[2 * i].weight.norm(dim=1)
        lost = removed(pruned.pruning_report, str(2 * i))
        assert not lost or norms[lost].max() <= norms[group.kept].min()
        masked[2 * i + 2].weight.data[:, lost] = 0  # type: ignore[operator]
    assert torch.allclose(pruned(x), masked(x), atol=1e-5)


def test_everything_that_belongs_to_a_channel_goes() -> None:
    """The document slices the weight alone: bias 16 against 11, then running_mean, then the next layer's input."""
    model, x = settled(ConvNet()), images()
    pruned = prune_channels(model, x, 0.3, skip=["3", "7"])
    assert pruned[0].weight.shape == (11, 3, 3, 3) and pruned[0].bias.shape == (11,)
    assert all(getattr(pruned[1], name).shape == (11,) for name in ("weight", "bias", "running_mean", "running_var"))
    assert pruned[3].weight.shape == (12, 11, 3, 3)
    kept = pruned.pruning_report.groups[0].kept
    assert torch.equal(pruned[1].running_mean, model[1].running_mean[kept])
    assert torch.equal(pruned[3].weight, model[3].weight[:, kept])
    pruned.train()(x).sum().backward()  # and it can be trained further
    assert all(p.grad is not None for p in pruned.parameters())


@pytest.mark.parametrize(("channels", "sparsity", "left"), [(10, 0.9, 1), (10, 1.0, 1), (16, 0.3, 11), (10, 0.0, 10)])
def test_at_least_one_channel_stays(channels: int, sparsity: float, left: int) -> None:
    """int(10 * (1 - 0.9)) is 0: an empty layer."""
    assert int(keep_channels(torch.rand(channels), sparsity).sum()) == left
    model = nn.Sequential(nn.Linear(3, channels), nn.ReLU(), nn.Linear(channels, 2))
    assert prune_channels(model, torch.randn(2, 3), sparsity)[0].out_features == left


def test_retained_is_not_compression() -> None:
    """179 of 256 channels left is 0.699 retained, not "69.92 % compression"; where both sides shrink it is 0.489."""
    model: Any = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 256, bias=False), nn.Linear(256, 10))
    pruned = prune_channels(model, torch.randn(2, 64), 0.3)
    report = pruned.pruning_report
    assert [group.retained_fraction for group in report.groups] == [179 / 256, 179 / 256]
    assert pruned[1].weight.numel() / model[1].weight.numel() == pytest.approx(0.489, abs=1e-3)
    assert report.retained_fraction == parameters(pruned) / parameters(model)
    assert "retained" in str(report) and "compression" not in str(report)
    assert list(report.to_frame()["retained_fraction"]) == [179 / 256, 179 / 256]


def test_dtype_mode_and_frozen_parameters_stay() -> None:
    model: Any = ConvNet().double().train()
    model[0].weight.requires_grad_(False)
    statistics = model[1].running_mean.clone()
    pruned = prune_channels(model, images().double(), 0.5, "activation")
    assert model.training and pruned.training and torch.equal(model[1].running_mean, statistics)
    assert pruned[0].weight.dtype == torch.float64
    assert not pruned[0].weight.requires_grad and pruned[0].bias.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": -0.1}, "sparsity must be"),
        ({"importance": "random"}, "importance must be one of magnitude, activation, taylor"),
        ({"importance": "taylor"}, "loss must be given"),
        ({"importance": {"0": torch.ones(15)}}, "importance must give finite scores for groups .*'0': 16"),
        ({"importance": {"9": torch.ones(5)}}, "got '9'"),
        ({"skip": ["conv"]}, r"skip must name layers of .*; got \['conv'\]"),
    ],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_channels(ConvNet(), images(), **options)
