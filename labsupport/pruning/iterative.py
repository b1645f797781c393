"""Iterative pruning: prune a little, train, prune a little more, with masks that hold through every optimizer.

    cubic      s_i = s_f (1 - (1 - i/n)³)   Zhu and Gupta 2017 (arXiv 1710.01878), equation 1: much at first, then less
    geometric  s_i = 1 - (1 - s_f)^(i/n)    Frankle and Carbin 2018 (arXiv 1803.03635): each round removes the same
                                            share of what remains

A masked weight has a gradient like any other, and momentum, Adam's moments and weight decay move it again even where
its gradient is zeroed. `Pruner` therefore puts the zeros back after each step of the optimizer, into its state as well,
and counts zeros where others print the target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.pruning.magnitude import achieved_sparsity, check_sparsity, keep_largest

if TYPE_CHECKING:
    import pandas as pd

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
    rounds, schedule, scope: "cubic" | "geometric"; one ranking of all weights ("global") or one a layer ("layer").
    epochs: of training in each round, after pruning, with one optimizer for all rounds.
    make_optimizer: parameters -> optimizer; Adam with learning rate 1e-3 if not given.
    rewind_to: a state dict, such as that before any training. All parameters go back to it after each pruning, and only
        the masks are learned: the lottery ticket of Frankle and Carbin.
    evaluate: model -> a number for the report, such as accuracy on held-out data.

    The result's ``pruning_report`` is an `IterativeReport`, one row a round.

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
    for i, target in enumerate(_bar(targets, progress)):
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
    """Sparsity after each round: 1 - (1 - s_f)^(i/n) for i = 1..n: of what remains, the same share each time."""
    _check_schedule(final_sparsity, rounds)
    return [1 - (1 - final_sparsity) ** (i / rounds) for i in range(1, rounds)] + [final_sparsity]


class Pruner:
    """Masks on a model's linear and convolutional weights that no optimizer can lift.

    Each pruned module gets a buffer ``weight_mask`` of its own, so masks are in the state dict, follow ``.to()``, and
    any nesting of modules will do. After every ``optimizer.step()`` the masked weights and everything the optimizer
    remembers of them are set to 0 again. A weight that is once pruned stays pruned.

    modules: names of the modules to prune; all linear and convolutional ones if not given.
    """

    def __init__(
        self, model: nn.Module, *optimizers: torch.optim.Optimizer, modules: Iterable[str] | None = None
    ) -> None:
        found: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}
        wanted = list(found) if modules is None else list(modules)
        unknown = [name for name in wanted if name not in found]
        if unknown or not wanted:
            raise ValueError(
                f"modules must name linear or convolutional layers, {list(found)}; got {unknown or wanted}"
            )
        self.model = model
        self.modules: dict[str, Any] = {}
        for name in wanted:
            if all(found[name].weight is not other.weight for other in self.modules.values()):  # tied weights once
                self.modules[name] = found[name]
        for module in self.modules.values():
            if "weight_mask" not in module._buffers:
                module.register_buffer("weight_mask", torch.ones_like(module.weight, dtype=torch.bool))
        self._optimizers: list[torch.optim.Optimizer] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for optimizer in optimizers:
            self.attach(optimizer)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold the masks through this optimizer's steps from now on."""
        self._optimizers.append(optimizer)
        self._hooks.append(optimizer.register_step_post_hook(lambda stepped, *_: self._apply(stepped)))
        self._apply(optimizer)

    @torch.no_grad()
    def prune(self, sparsity: float, scope: str = "global") -> None:
        """Mask the smallest weights until ``round(sparsity * n)`` are masked, the already masked ones among them.

        scope: "global" counts over all modules, "layer" in each.

        Raises:
            ValueError: no such scope; sparsity outside 0..1 or below what is masked already.
        """
        check_sparsity(sparsity)
        if scope not in ("global", "layer"):
            raise ValueError(f'scope must be "global" or "layer"; got {scope!r}')
        # Below every magnitude, so that a living weight which happens to be 0 does not take a masked one's place.
        scores = [m.weight.abs().float().masked_fill(~m.weight_mask, -1.0).flatten() for m in self.modules.values()]
        sizes = [len(each) for each in scores]
        masks: list[Tensor] = []
        for each in scores if scope == "layer" else [torch.cat(scores)]:
            count, masked = round(sparsity * len(each)), int((each < 0).sum())
            if count < masked:
                raise ValueError(
                    f"sparsity must be at least {masked / len(each):g}, what is masked already; got {sparsity}"
                )
            masks.append(keep_largest(each, count))
        for module, mask in zip(self.modules.values(), torch.cat(masks).split(sizes), strict=True):
            module.weight_mask.copy_(mask.view_as(module.weight))
        self.apply()

    def apply(self) -> None:
        """Zero what is masked, in the weights and in the state of all attached optimizers."""
        self._apply(*self._optimizers)

    @torch.no_grad()
    def _apply(self, *optimizers: torch.optim.Optimizer) -> None:
        for module in self.modules.values():
            gone = ~module.weight_mask
            module.weight.masked_fill_(gone, 0)
            for optimizer in optimizers:
                for value in optimizer.state.get(module.weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == gone.shape:
                        value.masked_fill_(gone, 0)

    @torch.no_grad()
    def rewind(self, state: Mapping[str, Tensor]) -> None:
        """Set parameters and buffers back to ``state`` (a state dict from earlier), keep the masks, and let the
        optimizers forget everything: training starts again, of the surviving weights only."""
        own = {name: value for name, value in self.model.state_dict().items() if not name.endswith("weight_mask")}
        missing = [name for name in own if name not in state]
        if missing:
            raise ValueError(f"state must hold every parameter of the model; it lacks {missing}")
        for name, value in own.items():
            value.copy_(state[name])
        for optimizer in self._optimizers:
            optimizer.state.clear()
        self.apply()

    @property
    def sparsity(self) -> float:
        """Share of zeros in the masked modules' weights, counted now."""
        return achieved_sparsity(*(module.weight for module in self.modules.values()))

    @property
    def layer_sparsity(self) -> dict[str, float]:
        return {name: achieved_sparsity(module.weight) for name, module in self.modules.items()}

    def remove(self) -> None:
        """Take masks and hooks away; the zeros stay where they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._optimizers.clear()
        for module in self.modules.values():
            del module.weight_mask


@dataclass
class RoundReport:
    """target: what the schedule asked for; sparsity, layers: zeros counted after training; loss: of the last epoch."""

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
        """One row a round."""
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


def _bar(targets: list[float], progress: bool) -> Iterable[float]:
    from tqdm.auto import tqdm

    return tqdm(targets, desc="iterative pruning", unit="round", disable=not progress)
