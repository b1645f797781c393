"""Which channels go first: what each importance promises."""

from __future__ import annotations

import copy
from typing import Any

import torch
from networks import ConvNet, images, removed, settled
from torch import nn

from labsupport.pruning.structured import prune_channels as typed_prune_channels

prune_channels: Any = typed_prune_channels  # Any: the report is an attribute of the model


def test_activation_is_what_the_next_layer_would_lose() -> None:
    """With uncorrelated channels the scores are the output's loss of power, channel by channel."""
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6))
    model[0].weight.data, model[0].bias.data = torch.diag(torch.tensor([3.0, 0.1, 2.0, 1.0])), torch.zeros(4)
    model[1].weight.data = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    model[1].weight.data[:, 1] *= 1000  # small activations, read with the largest weights
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
