"""One cut or many rounds, rewound or not: every answer gets the same number of epochs.

A comparison of pruning schedules is one of training times as well, unless all of them train for as long. And whether
rewinding found a "winning ticket" only a control can tell: the same mask on another random start (Frankle and Carbin
2018, arXiv 1803.03635, section 2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.pruning.iterative import fit, iterative_prune
from labsupport.pruning.pruner import Pruner


def equal_budgets(
    start: nn.Module,
    another_start: nn.Module,
    inputs: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    *,
    sparsity: float = 0.9,
    rounds: int = 5,
    epochs: int = 40,
    dense_epochs: int = 20,
    seed: int = 0,
) -> dict[str, tuple[nn.Module, int]]:
    """Networks by the way they were pruned, each with the epochs it trained since its weights were last reset.

    start: a classifier with its initial weights, not changed. A copy trains for ``dense_epochs`` and is then pruned to
        ``sparsity`` in several ways, each with ``epochs`` in all, ``epochs / rounds`` a round.
    another_start: the same network with other initial weights, for the control.

    Raises:
        ValueError: ``epochs`` is not a positive multiple of ``rounds``; and as `iterative_prune`.
    """
    if rounds < 1 or epochs < 1 or epochs % rounds:
        raise ValueError(f"epochs must be a positive multiple of rounds = {rounds}; got {epochs}")
    dense = copy.deepcopy(start)
    fit(dense, adam(dense.parameters()), inputs, labels, dense_epochs, seed=seed)
    each = epochs // rounds

    def prune(rounds: int, epochs: int, schedule: str, rewind_to: Mapping[str, Tensor] | None = None) -> nn.Module:
        return iterative_prune(
            dense, inputs, labels, sparsity, rounds=rounds, schedule=schedule, epochs=epochs, make_optimizer=adam,
            rewind_to=rewind_to, seed=seed + 1, progress=False,
        )  # fmt: skip

    cut, longer = copy.deepcopy(dense), copy.deepcopy(dense)
    pruner = Pruner(cut)
    pruner.prune(sparsity)
    pruner.remove()
    fit(longer, adam(longer.parameters()), inputs, labels, epochs, seed=seed + 1)
    rewound = prune(rounds, each, "geometric", start.state_dict())

    def ticket(weights: nn.Module) -> nn.Module:
        return train_with_mask(weights, rewound, inputs, labels, epochs, seed + 1)

    return {
        "dense, trained on": (longer, epochs),
        "one cut, not trained": (cut, 0),
        "one cut": (prune(1, epochs, "cubic"), epochs),
        "rounds, cubic": (prune(rounds, each, "cubic"), epochs),
        "rounds, geometric": (prune(rounds, each, "geometric"), epochs),
        "rounds, rewound": (rewound, each),
        "its mask, its start": (ticket(start), epochs),
        "its mask, new start": (ticket(another_start), epochs),
    }


def train_with_mask(
    start: nn.Module,
    masked: nn.Module,
    inputs: Float[Tensor, "n ..."],
    labels: Int64[Tensor, " n"],
    epochs: int,
    seed: int = 0,
) -> nn.Module:
    """A copy of ``start`` that has zeros where ``masked`` has them and trains for ``epochs``; the zeros stay."""
    model = copy.deepcopy(start)
    optimizer = adam(model.parameters())
    pruner = Pruner(model, optimizer)
    for name, module in pruner.modules.items():
        module.weight_mask.copy_(masked.get_submodule(name).weight != 0)
    pruner.apply()
    fit(model, optimizer, inputs, labels, epochs, seed=seed)
    pruner.remove()
    return model


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam as `iterative_prune` has it, all of a step in one kernel: networks this small mostly wait for Python."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)
