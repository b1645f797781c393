"""Which channels belong together, and which networks are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import images, removed
from torch import Tensor, nn

from labsupport.pruning.structured import prune_channels as typed_prune_channels

prune_channels: Any = typed_prune_channels  # Any: the report is an attribute of the model


class Ways(nn.Module):
    """Small networks by name: channels are followed to the right place, or none may go."""

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
    with pytest.raises(ValueError, match=f"through which channels can be followed.*{message}"):
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
