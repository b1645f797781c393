"""Structured pruning: whole channels go, and with them every row, column and statistic that belongs to them.

What belongs to a channel is found by a trace (dependencies.py), whatever the network's shape; which channels matter
least says importance.py. The result is a smaller network that runs faster on any hardware.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.lm.activations import evaluating
from labsupport.pruning.couplings import Couplings
from labsupport.pruning.dependencies import trace
from labsupport.pruning.importance import IMPORTANCES, Importance, channel_scores
from labsupport.pruning.magnitude import check_sparsity, keep_largest
from labsupport.pruning.resize import resize, take

if TYPE_CHECKING:
    import pandas as pd


def prune_channels(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    sparsity: float = 0.5,
    importance: Importance = "magnitude",
    *,
    skip: Sequence[str] = (),
    loss: Callable[[Any], Tensor] | None = None,
) -> nn.Module:
    """A smaller copy of ``model``, which is not changed: linear and convolutional layers lose output channels.

    example_input: what the model takes, with its batch dimension. The model is traced with it, and activation and
        taylor are measured on it: pass real data for these.
    sparsity: each group of C coupled channels keeps ``C - round(C * sparsity)``, at least one. The model's own
        inputs and outputs stay.
    importance: "magnitude" | "activation" | "taylor", or scores [C] by the name of a group's first layer; a group
        whose name is missing is left whole.
    skip: layers whose outputs stay.
    loss: model's output -> scalar, for taylor.

    The result's ``pruning_report`` is a `StructuredReport`. To load its state dict into a newly built model: `resize`.

    Raises:
        ValueError: a model that cannot be traced, or an operation in it that the trace does not understand (which);
            weights shared between layers; sparsity outside 0..1; no such importance or layer; scores of a wrong shape.
    """
    check_sparsity(sparsity)
    couplings = trace(model, example_input)
    _check(model, couplings, importance, skip, loss)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    groups, classes = couplings.groups(tuple(skip)), couplings.classes
    scores = channel_scores(model, couplings, inputs, importance, loss, groups)
    kept = torch.ones(len(classes), dtype=torch.bool)
    report = StructuredReport(importance if isinstance(importance, str) else "given")
    for names, members in groups.items():
        if isinstance(importance, str) or names[0] in importance:
            keep = keep_channels(scores[members], sparsity)
            kept[members[~keep]] = False
            report.groups.append(GroupReport(names, len(members), keep.nonzero().flatten()))
    state = take(model.state_dict(), couplings.slices, kept[classes])
    pruned = resize(copy.deepcopy(model), state)
    _check_runs(pruned, model, inputs)
    report.count(model, pruned)
    pruned.pruning_report = report  # type: ignore[assignment]
    return pruned


def keep_channels(scores: Float[Tensor, " channels"], sparsity: float) -> Tensor:
    """True for the C - round(C · sparsity) highest, at least one. Not int(C · (1 - sparsity)), which is 0 for 0.9 of
    10: 10 · (1 - 0.9) is 0.9999999999999998."""
    return keep_largest(scores, min(round(len(scores) * sparsity), len(scores) - 1))


@dataclass
class GroupReport:
    """Channels that several layers make together (a single layer if nothing is added to its output)."""

    names: tuple[str, ...]
    num_channels: int
    kept: Int64[Tensor, " kept"]

    @property
    def num_kept(self) -> int:
        return len(self.kept)

    @property
    def retained_fraction(self) -> float:
        return self.num_kept / self.num_channels


@dataclass
class StructuredReport:
    """What is left. Fractions are after / before: 0.7 means 1.43 times smaller."""

    importance: str
    groups: list[GroupReport] = field(default_factory=list)
    parameters_before: int = 0
    parameters: int = 0
    bytes_before: int = 0
    nbytes: int = 0

    @property
    def retained_fraction(self) -> float:
        return self.parameters / self.parameters_before

    def count(self, before: nn.Module, after: nn.Module) -> None:
        """Tied tensors count once; bytes are those of parameters and buffers, that is, of a file without its header."""
        self.parameters_before, self.parameters = (sum(p.numel() for p in m.parameters()) for m in (before, after))
        self.bytes_before, self.nbytes = (
            sum(t.nbytes for t in [*m.parameters(), *m.buffers()]) for m in (before, after)
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per group."""
        import pandas as pd

        rows = [[", ".join(g.names), g.num_channels, g.num_kept, g.retained_fraction] for g in self.groups]
        return pd.DataFrame(rows, columns=["layers", "channels", "kept", "retained_fraction"])

    def __str__(self) -> str:
        return (
            f"{self.importance}: {self.retained_fraction:.2%} of {self.parameters_before:,} parameters retained, "
            f"{self.bytes_before:,} -> {self.nbytes:,} bytes"
        )


@torch.no_grad()
def _check_runs(pruned: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Catches a size that is hard-coded in a forward in a way that the trace does not show."""
    with evaluating(pruned, model):
        wanted = model(*inputs)
        try:
            found = pruned(*inputs)
        except RuntimeError as error:
            raise ValueError(f"model must not hard-code channel sizes in its forward; pruned, {error}") from error
    if isinstance(wanted, Tensor) and wanted.shape != found.shape:
        raise ValueError(f"model's output must keep its shape {list(wanted.shape)}; pruned, it is {list(found.shape)}")


def _check(
    model: nn.Module, couplings: Couplings, importance: Importance, skip: Sequence[str], loss: Callable | None
) -> None:
    unknown = [name for name in skip if name not in couplings.producers]
    if unknown:
        raise ValueError(f"skip must name layers of {list(couplings.producers)}; got {unknown}")
    if isinstance(importance, str):
        if importance not in IMPORTANCES:
            raise ValueError(f"importance must be one of {', '.join(IMPORTANCES)}, or scores; got {importance!r}")
        if importance == "taylor" and loss is None:
            raise ValueError('loss must be given with importance="taylor": a function of the output')
    else:
        sizes = {names[0]: len(members) for names, members in couplings.groups(tuple(skip)).items()}
        for name, scores in importance.items():
            if name not in sizes or list(scores.shape) != [sizes[name]] or not bool(scores.isfinite().all()):
                raise ValueError(f"importance must give finite scores for groups {sizes}; got {name!r} {scores.shape}")
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name and (name in couplings.slices or first in couplings.slices):
            raise ValueError(f"model must not share weights between layers; {first} and {name} are one")
