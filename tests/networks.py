"""Small networks to prune, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def images(batch: int = 3, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def settled(model: nn.Module, *inputs: Tensor) -> Any:
    """With batch norms whose statistics and weights are not the defaults."""
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
    """conv1 and conv2 make the same channels, as their outputs are added; the last conv reads both parts of a cat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)  # two outputs per input
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
