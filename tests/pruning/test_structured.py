"""Structured pruning. The oracle: a pruned network computes what the dense one does with the columns zeroed by which
layers read the removed channels, and those columns are found here by hand for each network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labsupport.pruning.structured import IMPORTANCES, keep_channels, resize
from labsupport.pruning.structured import prune_channels as typed_prune_channels

prune_channels: Any = typed_prune_channels  # Any: the report is an attribute of the model


def images(batch: int = 3, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def settled(model: nn.Module, *inputs: Tensor) -> Any:
    """With batch norms whose statistics and weights are nobody's defaults."""
    generator = torch.Generator().manual_seed(9)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return model.eval()


class ConvNet(nn.Sequential):
    def __init__(self, width: int = 16) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 3, padding=1),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 5),
        )  # fmt: skip


class Residual(nn.Module):
    """conv1 and conv2 make the same channels, for their outputs are added; the last conv reads both parts of a cat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)  # two outputs an input
        self.last = nn.Conv2d(22, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        inner = self.block(x)
        x = x + self.conv2(inner)
        x = torch.cat((inner, F.silu(self.depthwise(x))), dim=1)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def removed(report: Any, name: str) -> list[int]:
    group = next(group for group in report.groups if name in group.names)
    return sorted(set(range(group.num_channels)) - set(group.kept.tolist()))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------ the oracle


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
    """A norm across channels keeps them all: its statistics would be others without some."""

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


class Ways(nn.Module):
    """Small networks by name: each is followed to the right end, or has nothing that may go."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.scale, self.linear = nn.Parameter(torch.randn(1, 6, 1, 1)), nn.Linear(6 * 64, 4)
        self.one = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.a(x), self.b(x)
        if self.way == "view":
            return self.linear((x * y).view(x.size(0), -1))
        if self.way == "twice":
            return self.linear(F.relu(self.c(x)).flatten(1)) + self.linear(self.c(F.relu(y)).reshape(y.shape[0], -1))
        if self.way == "scale":
            return self.linear(torch.flatten(x * self.scale, 1)) + self.linear(y.flatten(1))
        if self.way == "one for all":  # a single channel, added to each of several that stay
            return self.linear((self.one(y) + self.scale).flatten(1)) + self.linear(self.c(self.one(y) + x).flatten(1))
        raise AssertionError(self.way)


@pytest.mark.parametrize(
    ("way", "groups"),
    [("view", [("a", "b")]), ("twice", [("a", "b"), ("c",)]), ("scale", []), ("one for all", [("a",), ("b",)])],
)
def test_coupled_by_use(way: str, groups: list[tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    model, x = Ways(way), images()
    pruned = prune_channels(model, x, 0.5)
    assert [group.names for group in pruned.pruning_report.groups] == groups
    masked = copy.deepcopy(model)
    with torch.no_grad():
        if way == "view":
            masked.linear.weight.view(4, 6, 64)[:, removed(pruned.pruning_report, "a")] = 0
        if way == "one for all":
            masked.c.weight[:, removed(pruned.pruning_report, "a")] = 0
            masked.one.weight[:, removed(pruned.pruning_report, "b")] = 0
        if way == "twice":
            masked.c.weight[:, removed(pruned.pruning_report, "a")] = 0
            masked.linear.weight.view(4, 6, 64)[:, removed(pruned.pruning_report, "c")] = 0
    assert torch.allclose(pruned(x), masked(x), atol=1e-5)


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


# ------------------------------------------------------------------------------------------------ importance


def test_activation_is_what_the_next_layer_would_lose() -> None:
    """With uncorrelated channels the scores are the output's loss of power, channel by channel."""
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6))
    model[0].weight.data, model[0].bias.data = torch.diag(torch.tensor([3.0, 0.1, 2.0, 1.0])), torch.zeros(4)
    model[1].weight.data = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    model[1].weight.data[:, 1] *= 1000  # small activations, but nobody reads louder
    x = torch.linalg.qr(torch.randn(40, 4, generator=torch.Generator().manual_seed(1)))[0]
    lost = []
    for channel in range(4):
        masked = copy.deepcopy(model)
        masked[1].weight.data[:, channel] = 0
        lost.append((masked(x) - model(x)).square().sum().item())
    order = torch.tensor(lost).argsort()
    for count in (1, 2, 3):
        pruned = prune_channels(model, x, count / 4, "activation")
        assert removed(pruned.pruning_report, "0") == sorted(order[:count].tolist())


def test_taylor_is_the_change_of_the_loss_to_first_order() -> None:
    """A loss linear in the removed channel: the score of one sample is the square of the change itself."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 2))
    x = torch.randn(1, 5)
    changes = []
    for channel in range(6):
        masked = copy.deepcopy(model)
        masked[2].weight.data[:, channel] = 0
        changes.append((masked(x) - model(x)).sum().abs().item())
    order = torch.tensor(changes).argsort()
    for count in range(1, 6):
        pruned = prune_channels(model, x, count / 6, "taylor", loss=lambda y: y.sum())
        assert removed(pruned.pruning_report, "0") == sorted(order[:count].tolist())
    assert all(p.grad is None for p in model.parameters())


def test_given_scores_decide_and_the_rest_stays() -> None:
    model, x = settled(ConvNet()), images()
    scores = torch.arange(16.0).roll(3)
    pruned = prune_channels(model, x, 0.25, {"0": scores})
    (group,) = pruned.pruning_report.groups
    assert group.names == ("0",) and removed(pruned.pruning_report, "0") == [3, 4, 5, 6]
    assert pruned[3].out_channels == 12
    pruned = prune_channels(model, x, 0.25, skip=["0", "7"])
    assert [group.names for group in pruned.pruning_report.groups] == [("3",)]


# ------------------------------------------------------------------------------------------------ errata


def test_e31_everything_that_belongs_to_a_channel_goes() -> None:
    """The document slices the weight alone: bias 16 against 11, then running_mean, then the next layer's input."""
    model, x = settled(ConvNet()), images()
    pruned = prune_channels(model, x, 0.3, skip=["3", "7"])
    assert pruned[0].weight.shape == (11, 3, 3, 3) and pruned[0].bias.shape == (11,)
    assert all(getattr(pruned[1], name).shape == (11,) for name in ("weight", "bias", "running_mean", "running_var"))
    assert pruned[3].weight.shape == (12, 11, 3, 3)
    kept = pruned.pruning_report.groups[0].kept
    assert torch.equal(pruned[1].running_mean, model[1].running_mean[kept])
    assert torch.equal(pruned[3].weight, model[3].weight[:, kept])
    pruned.train()(x).sum().backward()  # and it trains on
    assert all(p.grad is not None for p in pruned.parameters())


@pytest.mark.parametrize(("channels", "sparsity", "left"), [(10, 0.9, 1), (10, 1.0, 1), (16, 0.3, 11), (10, 0.0, 10)])
def test_e32_at_least_one_channel_stays(channels: int, sparsity: float, left: int) -> None:
    """int(10 * (1 - 0.9)) is 0: an empty layer."""
    assert int(keep_channels(torch.rand(channels), sparsity).sum()) == left
    model = nn.Sequential(nn.Linear(3, channels), nn.ReLU(), nn.Linear(channels, 2))
    assert prune_channels(model, torch.randn(2, 3), sparsity)[0].out_features == left


def test_e33_retained_is_not_compression() -> None:
    """179 of 256 channels left is 0.699 retained, not "69.92 % compression"; where both sides shrink it is 0.489."""
    model: Any = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 256, bias=False), nn.Linear(256, 10))
    pruned = prune_channels(model, torch.randn(2, 64), 0.3)
    report = pruned.pruning_report
    assert [group.retained_fraction for group in report.groups] == [179 / 256, 179 / 256]
    assert pruned[1].weight.numel() / model[1].weight.numel() == pytest.approx(0.489, abs=1e-3)
    assert report.retained_fraction == parameters(pruned) / parameters(model)
    assert "retained" in str(report) and "compression" not in str(report)
    assert list(report.to_frame()["retained_fraction"]) == [179 / 256, 179 / 256]


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("build", [ConvNet, Residual])
def test_state_dict_loads_and_the_file_shrinks_as_computed(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = settled(build()), images()
    pruned = prune_channels(model, x, 0.5)
    sizes = {}
    for name, each in (("dense", model), ("pruned", pruned)):
        save_file(each.state_dict(), tmp_path / name)
        header = int.from_bytes((tmp_path / name).read_bytes()[:8], "little") + 8
        sizes[name] = (tmp_path / name).stat().st_size - header
    report = pruned.pruning_report
    assert sizes == {"dense": report.bytes_before, "pruned": report.nbytes}
    assert report.nbytes < 0.5 * report.bytes_before
    pruned.load_state_dict(load_file(tmp_path / "pruned"))  # its own
    again = resize(build(), load_file(tmp_path / "pruned")).eval()
    assert torch.equal(again(x), pruned(x))
    if build is ConvNet:
        assert str(again) == str(pruned)  # sizes in the modules, not in the weights alone
    twice = prune_channels(pruned, x, 0.5)
    assert parameters(twice) < parameters(pruned)


def test_resize_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"got \[3, 4\] for weight \[5, 4\] of a Embedding"):
        resize(nn.Embedding(5, 4), {"weight": torch.ones(3, 4)})
    with pytest.raises(RuntimeError, match="Missing key"):
        resize(nn.Linear(3, 2), {"weight": torch.ones(1, 3)})


def test_dtype_mode_and_frozen_parameters_stay() -> None:
    model: Any = ConvNet().double().train()
    model[0].weight.requires_grad_(False)
    statistics = model[1].running_mean.clone()
    pruned = prune_channels(model, images().double(), 0.5, "activation")
    assert model.training and pruned.training and torch.equal(model[1].running_mean, statistics)
    assert pruned[0].weight.dtype == torch.float64
    assert not pruned[0].weight.requires_grad and pruned[0].bias.requires_grad


# ------------------------------------------------------------------------------------------------ refusals


class Forward(nn.Module):
    """Two layers with any function between them."""

    def __init__(self, between: Any, after: nn.Module) -> None:
        super().__init__()
        self.conv, self.after, self.between = nn.Conv2d(3, 8, 3, padding=1), after, between

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.between(self.conv(x)))


@pytest.mark.parametrize(
    ("between", "after", "message"),
    [
        (lambda x: x[:, :4], nn.Conv2d(4, 2, 1), "got getitem"),
        (lambda x: x.mean(1, keepdim=True), nn.Conv2d(1, 2, 1), "mean over channels"),
        (lambda x: torch.cat((x, x), 2), nn.Conv2d(8, 2, 1), "cat along dimension 2"),
        (lambda x: x.transpose(1, 2), nn.Conv2d(8, 2, 1), "got transpose"),
        (lambda x: x, nn.Linear(8, 2), "after reads dimension 3, channels lie in dimension 1"),
        (lambda x: x.view(-1, 512), nn.Linear(512, 2), "write -1"),
        (lambda x: torch.reshape(x, (3, 512)), nn.Linear(512, 2), "write -1"),
        (lambda x: x, nn.Conv2d(8, 4, 1, groups=2), "groups=2: only 1 or depthwise"),
        (lambda x: x, nn.PixelShuffle(2), r"after \(PixelShuffle\)"),
        (lambda x: x.cumsum(1), nn.Conv2d(8, 2, 1), "got cumsum"),
    ],
)
def test_what_is_not_understood_is_refused(between: Any, after: nn.Module, message: str) -> None:
    model = Forward(between, after)
    model(images())  # runs, dense
    with pytest.raises(ValueError, match=f"channels can be followed through.*{message}"):
        prune_channels(model, images(), 0.5)


def test_control_flow_and_written_sizes_are_refused() -> None:
    class Control(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"torch\.fx can trace"):
        prune_channels(nn.Sequential(Control(4, 4), nn.Linear(4, 2)), torch.ones(1, 4))

    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    shared[1].weight = shared[0].weight
    with pytest.raises(ValueError, match=r"share weights between layers; 0\.weight and 1\.weight"):
        prune_channels(shared, torch.ones(1, 4))


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
