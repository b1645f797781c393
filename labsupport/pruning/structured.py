"""Structured pruning: whole channels go, and with them every row, column and statistic that belonged to them.

What belongs to a channel is found by a trace (dependencies.py), whatever the network's shape. A smaller network is left
that any hardware runs faster. Removing a channel is the same as zeroing the columns by which the following layers read
it, so importance is asked of those columns:

    magnitude    ‖W_c‖₂ of the channel's own weights (Li et al. 2016, arXiv 1608.08710, with the L1 norm)
    activation   Σ x_c² · ‖V_c‖², V_c the columns that read x_c: what the following layers would lose
    taylor       (Σ x_c · ∂loss/∂x_c)², mean over samples: what the loss would change, to first order
                 (Molchanov et al. 2016, arXiv 1611.06440, equation 6; squared as in 1906.10771)

No channel is worth removing alone if others are added to it: coupled channels have one score, the sum over all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.pruning.dependencies import Couplings, trace
from labsupport.pruning.magnitude import check_sparsity, keep_largest

if TYPE_CHECKING:
    import pandas as pd

IMPORTANCES = ("magnitude", "activation", "taylor")
Importance = str | Mapping[str, Float[Tensor, " channels"]]


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

    example_input: what the model takes, with its batch dimension: traced with, and what activation and taylor are
        measured on. Give them real data.
    sparsity: each group of C coupled channels keeps ``C - round(C * sparsity)``, at least one. The model's own
        inputs and outputs stay.
    importance: "magnitude" | "activation" | "taylor", or scores [C] by the name of a group's first layer; where
        such a name is missing, the group is left whole.
    skip: layers whose outputs stay.
    loss: model's output -> scalar, for taylor.

    The result's ``pruning_report`` is a `StructuredReport`. To load its state dict into a newly built model: `resize`.

    Raises:
        ValueError: a model that cannot be traced or does what the trace does not understand, named; weights shared
            between layers; sparsity outside 0..1; no such importance or layer; scores of a wrong shape.
    """
    check_sparsity(sparsity)
    couplings = trace(model, example_input)
    _check(model, couplings, importance, skip, loss)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    groups, classes = couplings.groups(tuple(skip)), couplings.classes
    scores = _scores(model, couplings, inputs, importance, loss, groups)
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


def take(
    state: Mapping[str, Tensor], slices: Mapping[str, Mapping[int, Tensor]], kept_units: Tensor
) -> dict[str, Tensor]:
    """A state dict with only the kept indices of each sliced dimension, each tensor with memory of its own."""
    result = {name: tensor.detach().clone() for name, tensor in state.items()}
    for name, dims in slices.items():
        for dim, units in dims.items():
            indices = kept_units[units].nonzero().flatten().to(result[name].device)
            result[name] = result[name].index_select(dim, indices)
    return result


@torch.no_grad()
def resize(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Give the model's linear, convolutional and norm layers the sizes in ``state_dict``, and load it; returns it.

    This is how a pruned model comes back from a file: build it as it was, then ``resize(model, torch.load(file))``.

    Raises:
        ValueError: another size in a layer of another kind.
        RuntimeError: missing or unexpected names, as from ``load_state_dict``.
    """
    for name, module in model.named_modules():
        any_module: Any = module
        prefix = f"{name}." if name else ""
        depthwise = getattr(module, "groups", 1) > 1
        multiplier = any_module.out_channels // any_module.groups if depthwise else 1
        for store in (module._parameters, module._buffers):
            for own, tensor in store.items():
                given = state_dict.get(prefix + own)
                if tensor is None or given is None or given.shape == tensor.shape:
                    continue
                if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.modules.batchnorm._NormBase):
                    raise ValueError(
                        f"state_dict may resize linear, convolutional and norm layers; got {list(given.shape)} for "
                        f"{prefix}{own} {list(tensor.shape)} of a {type(module).__name__}"
                    )
                new = torch.empty(given.shape, dtype=tensor.dtype, device=tensor.device)
                # Parameter and buffer dicts take only their own kind.
                store[own] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            module.out_channels = module.weight.shape[0]
            module.groups = module.out_channels // multiplier if depthwise else 1
            module.in_channels = module.weight.shape[1] * module.groups
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            sized = module.weight if module.weight is not None else module.running_mean
            module.num_features = module.num_features if sized is None else len(sized)
    model.load_state_dict(state_dict)
    return model


@dataclass
class GroupReport:
    """Channels that several layers make together (one layer, if nothing is added to its output)."""

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
    """What is left. Fractions are retained / before: 0.7 means 1.43 times smaller."""

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
        """Tied tensors count once; bytes are those of parameters and buffers, so of a file without its header."""
        self.parameters_before, self.parameters = (sum(p.numel() for p in m.parameters()) for m in (before, after))
        self.bytes_before, self.nbytes = (
            sum(t.nbytes for t in [*m.parameters(), *m.buffers()]) for m in (before, after)
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a group."""
        import pandas as pd

        rows = [[", ".join(g.names), g.num_channels, g.num_kept, g.retained_fraction] for g in self.groups]
        return pd.DataFrame(rows, columns=["layers", "channels", "kept", "retained_fraction"])

    def __str__(self) -> str:
        return (
            f"{self.importance}: {self.retained_fraction:.2%} of {self.parameters_before:,} parameters retained, "
            f"{self.bytes_before:,} -> {self.nbytes:,} bytes"
        )


# ------------------------------------------------------------------------------------------------ importance


def _scores(
    model: nn.Module, couplings: Couplings, inputs: tuple[Tensor, ...], importance: Importance,
    loss: Callable[[Any], Tensor] | None, groups: Mapping[tuple[str, ...], Tensor],
) -> Float[Tensor, " units"]:  # fmt: skip
    """For each class of units, at its place among all units."""
    classes = couplings.classes
    result = torch.zeros(len(classes))
    if not isinstance(importance, str):
        for names, members in groups.items():
            if names[0] in importance:
                result[members] = importance[names[0]].detach().float().cpu()
        return result
    if importance == "magnitude":
        for name, units in couplings.producers.items():
            weight = model.get_submodule(name).weight.detach().float().cpu()  # type: ignore[union-attr, operator]
            result.index_add_(0, classes[units], weight.flatten(1).square().sum(1))  # type: ignore[operator]
        return result
    taylor = importance == "taylor"
    layers = {name: model.get_submodule(name) for name in couplings.consumers}
    with evaluating(model), watch_inputs(layers, taylor) as seen:
        output = model(*inputs)
        if taylor:
            assert loss is not None
            loss(output).backward(inputs=[x for found in seen.values() for x in found])
    samples = []
    for name, layer in layers.items():
        for x in seen[name]:
            sums = input_scores(layer, x, taylor)
            sums = sums if taylor else sums.sum(0, keepdim=True)  # taylor's samples are squared one by one
            total = torch.zeros(len(sums), len(classes))
            samples.append(total.index_add_(1, classes[couplings.consumers[name]], sums))
    if not samples:
        return result
    total = torch.stack(samples).sum(0)
    return total.square().mean(0) if taylor else total[0]


@torch.no_grad()
def input_scores(layer: Any, x: Float[Tensor, "n ..."], taylor: bool) -> Float[Tensor, "n in"]:
    """For each sample and input channel of a layer: Σ x · ∂loss/∂x, or Σ x² · ‖V‖², over everything else."""
    dim = 1 if layer.weight.dim() > 2 else x.dim() - 1
    sums = x.square() if not taylor else torch.zeros_like(x) if x.grad is None else x * x.grad
    sums = sums.transpose(1, dim).flatten(2).sum(2) if x.dim() > 2 else sums
    power = layer.weight.transpose(0, 1).flatten(1).square().sum(1)
    return (sums if taylor else sums * power).detach().float().cpu()


@contextmanager
def watch_inputs(layers: Mapping[str, nn.Module], gradients: bool) -> Iterator[dict[str, list[Tensor]]]:
    """Inputs of each layer, call by call; with gradients each is a copy, whose ``grad`` is by way of this layer."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hook(name: str) -> Callable:
        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = arguments[0].clone() if gradients else arguments[0].detach()
            if gradients:
                x = x if x.requires_grad else x.requires_grad_()
                x.retain_grad()
            seen[name].append(x)
            return (x, *arguments[1:]) if gradients else arguments

        return keep

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.set_grad_enabled(gradients):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# ------------------------------------------------------------------------------------------------ checks


@torch.no_grad()
def _check_runs(pruned: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A size written into a forward, in a way that no trace shows, comes to light here."""
    with evaluating(pruned), evaluating(model):
        wanted = model(*inputs)
        try:
            found = pruned(*inputs)
        except RuntimeError as error:
            raise ValueError(f"model must not hold sizes of its channels in its forward; pruned, {error}") from error
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
