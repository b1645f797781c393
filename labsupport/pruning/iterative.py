"""Iterative pruning: prune a little, train, prune a little more.

    cubic      s_i = s_f (1 - (1 - i/n)³)   Zhu and Gupta 2017 (arXiv 1710.01878), equation 1: much at first, then less
    geometric  s_i = 1 - (1 - s_f)^(i/n)    Frankle and Carbin 2018 (arXiv 1803.03635): each round removes the same
                                            share of what remains

The masks hold through every step of the optimizer: see pruner.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.progress import progress_bar
from labsupport.pruning.magnitude import check_sparsity
from labsupport.pruning.pruner import Pruner

if TYPE_CHECKING:
    import pandas as pd


def iterative_prune(
    model: nn.Module,
    inputs: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    sparsity: float = 0.9,
    *,
    rounds: int = 5,
    schedule: str = "cubic",
    scope: str = "global",
    epochs: int = 5,
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    batch_size: int = 64,
    rewind_to: Mapping[str, Tensor] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """A pruned and retrained copy of a trained classifier; ``model`` is not changed.

    sparsity: share of zeros in the weights of linear and convolutional layers after the last round.
    rounds, schedule: "cubic" | "geometric". scope: one ranking of all weights ("global") or one per layer ("layer").
    epochs: of training in each round, after pruning; one optimizer serves all rounds.
    make_optimizer: parameters -> optimizer; Adam with learning rate 1e-3 if not given.
    rewind_to: a state dict, such as that before any training. All parameters return to it after each pruning, and only
        the masks are learned: the lottery ticket of Frankle and Carbin.
    evaluate: model -> a number for the report, such as accuracy on held-out data.

    The result's ``pruning_report`` is an `IterativeReport`, one row per round.

    Raises:
        ValueError: no such schedule or scope; sparsity outside 0..1; rounds or epochs below 1; a state dict that lacks
            a parameter of the model.
    """
    targets = _schedule(schedule)(sparsity, rounds)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a positive integer, got {epochs!r}")
    model = copy.deepcopy(model)
    optimizer = make_optimizer(model.parameters()) if make_optimizer else torch.optim.Adam(model.parameters(), lr=1e-3)
    pruner, report = Pruner(model, optimizer), IterativeReport(schedule, scope)
    for i, target in enumerate(progress_bar(targets, "iterative pruning", "round", progress)):
        pruner.prune(target, scope)
        if rewind_to is not None:
            pruner.rewind(rewind_to)
        loss = fit(model, optimizer, inputs, labels, epochs, batch_size, seed=seed + i)
        metric = evaluate(model) if evaluate is not None else None
        report.rounds.append(RoundReport(target, pruner.sparsity, loss, metric, pruner.layer_sparsity))
    pruner.remove()
    model.pruning_report = report  # type: ignore[assignment]
    return model


def cubic_schedule(final_sparsity: float, rounds: int, initial_sparsity: float = 0.0) -> list[float]:
    """Sparsity after each round: s_f + (s_0 - s_f) (1 - i/n)³ for i = 1..n (Zhu and Gupta 2017, equation 1)."""
    _check_schedule(final_sparsity, rounds)
    check_sparsity(initial_sparsity)
    if initial_sparsity > final_sparsity:
        raise ValueError(f"initial_sparsity must be at most final_sparsity = {final_sparsity}, got {initial_sparsity}")
    return [final_sparsity + (initial_sparsity - final_sparsity) * (1 - i / rounds) ** 3 for i in range(1, rounds + 1)]


def geometric_schedule(final_sparsity: float, rounds: int) -> list[float]:
    """Sparsity after each round: 1 - (1 - s_f)^(i/n) for i = 1..n, the same share of what remains each time."""
    _check_schedule(final_sparsity, rounds)
    return [1 - (1 - final_sparsity) ** (i / rounds) for i in range(1, rounds)] + [final_sparsity]


@dataclass
class RoundReport:
    """target: of the schedule; sparsity, layers: share of zeros, counted after training; loss: of the last epoch."""

    target: float
    sparsity: float
    loss: float
    metric: float | None
    layers: dict[str, float]


@dataclass
class IterativeReport:
    schedule: str
    scope: str
    rounds: list[RoundReport] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        return self.rounds[-1].sparsity

    def to_frame(self) -> pd.DataFrame:
        """One row per round."""
        import pandas as pd

        columns = ("target", "sparsity", "loss", "metric")
        rows = [[getattr(each, column) for column in columns] for each in self.rounds]
        return pd.DataFrame(rows, columns=list(columns), index=pd.RangeIndex(1, len(rows) + 1, name="round"))


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Train a classifier with cross-entropy on shuffled batches; the mean loss of the last epoch."""
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.train()
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
            rows = batch.to(inputs.device)
            loss = F.cross_entropy(model(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
    model.train(was_training)
    return total / len(inputs)


def _schedule(name: str) -> Callable[[float, int], list[float]]:
    schedules = {"cubic": cubic_schedule, "geometric": geometric_schedule}
    if name not in schedules:
        raise ValueError(f'schedule must be "cubic" or "geometric"; got {name!r}')
    return schedules[name]


def _check_schedule(final_sparsity: float, rounds: int) -> None:
    check_sparsity(final_sparsity)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be a positive integer, got {rounds!r}")
