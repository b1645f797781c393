"""Equal budgets: every way of pruning trains for as long, from the same start, with zeros that stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import labsupport.pruning.budgets as module
from labsupport.pruning import achieved_sparsity, equal_budgets, fit, train_with_mask


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()


def zeros(model: nn.Module) -> list[torch.Tensor]:
    return [parameter == 0 for parameter in model.parameters() if parameter.dim() == 2]


def test_every_way_of_pruning_trains_for_as_many_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[int] = []

    def counted(
        model: nn.Module, optimizer: Any, inputs: Any, labels: Any, epochs: int, *rest: Any, **named: Any
    ) -> float:
        spent.append(epochs)
        return fit(model, optimizer, inputs, labels, epochs, *rest, **named)

    monkeypatch.setattr(module, "fit", counted)
    monkeypatch.setattr("labsupport.pruning.iterative.fit", counted)
    found = equal_budgets(net(0), net(1), INPUTS, LABELS, sparsity=0.5, rounds=3, epochs=6, dense_epochs=2)
    # dense, dense trained on, then the rewound network, on whose mask the last two train, one cut, and two schedules
    assert spent == [2, 6, *[2] * 3, 6, *[2] * 3, *[2] * 3, 6, 6]
    epochs = {name: count for name, (_, count) in found.items()}
    assert epochs.pop("one cut, not trained") == 0 and epochs.pop("rounds, rewound") == 2
    assert set(epochs.values()) == {6}


def test_all_but_the_dense_network_have_the_zeros() -> None:
    start, another = net(0), net(1)
    before = copy.deepcopy(start.state_dict())
    found = equal_budgets(start, another, INPUTS, LABELS, sparsity=0.5, rounds=2, epochs=4, dense_epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    for name, (model, _) in found.items():
        share = achieved_sparsity(*(weight for weight in model.parameters() if weight.dim() == 2))
        assert share == (0 if name.startswith("dense") else 0.5), name
        assert set(model.state_dict()) == set(before), "no masks are left behind"
    masks = [zeros(found[name][0]) for name in ("rounds, rewound", "its mask, its start", "its mask, new start")]
    assert all(torch.equal(a, b) for other in masks[1:] for a, b in zip(masks[0], other, strict=True))


def test_a_mask_trains_from_the_start_it_is_given() -> None:
    masked = net(2)
    for weight in masked.parameters():
        if weight.dim() == 2:
            weight.data[:, ::2] = 0
    start = net(0)
    trained = train_with_mask(start, masked, INPUTS, LABELS, epochs=1)
    expected = copy.deepcopy(start)
    with torch.no_grad():
        for weight, gone in zip((w for w in expected.parameters() if w.dim() == 2), zeros(masked), strict=True):
            weight.masked_fill_(gone, 0)
    moved = [(a - b).abs().max().item() for a, b in zip(trained.parameters(), expected.parameters(), strict=True)]
    assert 0 < max(moved) < 0.01, "one step of Adam at 1e-3 from that start"
    assert all(torch.equal(a, b) for a, b in zip(zeros(trained), zeros(masked), strict=True))


@pytest.mark.parametrize(("rounds", "epochs"), [(5, 12), (0, 5), (5, 0)])
def test_epochs_must_be_shared_out_evenly(rounds: int, epochs: int) -> None:
    with pytest.raises(ValueError, match="epochs must be a positive multiple of rounds"):
        equal_budgets(net(0), net(1), INPUTS, LABELS, rounds=rounds, epochs=epochs)
