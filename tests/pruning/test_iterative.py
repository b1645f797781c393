"""Iterative pruning: schedules by their formulas, and what pruning in rounds costs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from labsupport.pruning.iterative import cubic_schedule, fit, geometric_schedule
from labsupport.pruning.iterative import iterative_prune as typed_iterative_prune
from labsupport.pruning.pruner import Pruner

iterative_prune: Any = typed_iterative_prune  # Any: the report is an attribute of the model


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def zeros_of(model: Any) -> tuple[int, int]:
    weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}.values()
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def test_cubic_and_geometric_are_two_curves() -> None:
    """The document comments the cubic schedule as exponential growth."""
    assert cubic_schedule(0.9, 5) == pytest.approx([0.4392, 0.7056, 0.8424, 0.8928, 0.9], abs=1e-9)
    assert geometric_schedule(0.9, 5) == pytest.approx([0.3690, 0.6019, 0.7488, 0.8415, 0.9], abs=1e-4)


@given(final=st.floats(0, 1), rounds=st.integers(1, 30), initial=st.floats(0, 1))
def test_schedules_rise_to_the_target(final: float, rounds: int, initial: float) -> None:
    for schedule in (cubic_schedule(final, rounds, min(initial, final)), geometric_schedule(final, rounds)):
        assert len(schedule) == rounds and schedule[-1] == final
        assert all(0 <= a <= b + 1e-12 and b <= 1 for a, b in pairwise(schedule))


def test_geometric_removes_the_same_share_each_round() -> None:
    remaining = [1.0, *(1 - s for s in geometric_schedule(0.97, 7))]
    shares = [b / a for a, b in pairwise(remaining)]
    assert shares == pytest.approx([0.03 ** (1 / 7)] * 7)


@pytest.mark.parametrize("schedule", [cubic_schedule, geometric_schedule])
def test_schedules_check_their_arguments(schedule: Callable) -> None:
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="sparsity must be"):
            schedule(bad, 5)
    for bad in (0, 2.0, True):
        with pytest.raises(ValueError, match="rounds must be"):
            schedule(0.5, bad)
    with pytest.raises(ValueError, match="initial_sparsity must be at most"):
        cubic_schedule(0.5, 3, 0.6)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def test_ninety_percent_costs_less_than_a_point(digits: tuple[Tensor, ...]) -> None:
    x, y, held_out_x, held_out_y = digits
    dense_accuracy, pruned_accuracy = [], []
    for seed in range(3):
        dense = mlp(seed)
        fit(dense, torch.optim.Adam(dense.parameters(), lr=1e-3), x, y, epochs=12, seed=seed)
        weights = copy.deepcopy(dense.state_dict())
        pruned = iterative_prune(
            dense, x, y, 0.9, rounds=5, epochs=3, seed=seed, progress=False,
            evaluate=lambda model: accuracy(model, held_out_x, held_out_y),
        )  # fmt: skip
        assert all(torch.equal(value, weights[name]) for name, value in dense.state_dict().items())
        zeros, total = zeros_of(pruned)
        assert zeros == round(0.9 * total)
        assert pruned.state_dict().keys() == dense.state_dict().keys()
        report = pruned.pruning_report
        assert report.sparsity == zeros / total  # counted, after training
        assert [each.target for each in report.rounds] == cubic_schedule(0.9, 5)
        assert report.rounds[-1].metric == accuracy(pruned, held_out_x, held_out_y)
        assert (
            list(report.to_frame().columns) == ["target", "sparsity", "loss", "metric"] and len(report.to_frame()) == 5
        )
        dense_accuracy.append(accuracy(dense, held_out_x, held_out_y))
        pruned_accuracy.append(report.rounds[-1].metric)
    assert sum(dense_accuracy) / 3 > 0.93
    assert sum(pruned_accuracy) / 3 > sum(dense_accuracy) / 3 - 0.01, (dense_accuracy, pruned_accuracy)


def test_a_lottery_ticket_beats_the_same_mask_on_other_weights(digits: tuple[Tensor, ...]) -> None:
    """Survivors with their own first values learn better than with fresh ones (Frankle and Carbin, figure 1)."""
    x, y, held_out_x, held_out_y = digits

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=5e-3)

    for seed in range(2):
        start = mlp(seed)
        trained = copy.deepcopy(start)
        fit(trained, adam(trained.parameters()), x, y, epochs=8, seed=seed)
        ticket = iterative_prune(
            trained, x, y, 0.97, rounds=4, schedule="geometric", epochs=4, make_optimizer=adam,
            rewind_to=start.state_dict(), seed=seed, progress=False,
        )  # fmt: skip
        fresh = mlp(100 + seed)
        optimizer = adam(fresh.parameters())
        pruner = Pruner(fresh, optimizer)
        for name, module in pruner.modules.items():
            module.weight_mask.copy_(ticket.get_submodule(name).weight != 0)
        pruner.apply()
        fit(fresh, optimizer, x, y, epochs=4, seed=seed + 3)
        assert zeros_of(fresh) == zeros_of(ticket)
        with torch.no_grad():
            ticket_loss, fresh_loss = (float(F.cross_entropy(m(held_out_x), held_out_y)) for m in (ticket, fresh))
        assert ticket_loss < 0.5 * fresh_loss


@pytest.mark.parametrize(
    ("options", "message"),
    [({"schedule": "linear"}, "schedule must be"), ({"rounds": 0}, "rounds must be"), ({"epochs": 0}, "epochs must be"),
     ({"sparsity": 2}, "sparsity must be"), ({"scope": "row"}, "scope must be")],
)  # fmt: skip
def test_bad_input_is_named(options: dict, message: str) -> None:
    arguments = {"inputs": torch.randn(8, 64), "labels": torch.zeros(8, dtype=torch.int64), "progress": False} | options
    with pytest.raises(ValueError, match=message):
        iterative_prune(mlp(), **arguments)
