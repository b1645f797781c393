"""Masks that hold through every optimizer.

A masked weight has a gradient like any other, and momentum, Adam's moments and weight decay move it again even if its
gradient is zeroed. `Pruner` therefore restores the zeros after each step of the optimizer, in the optimizer's state as
well, and reports zeros that it counted rather than the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labsupport.pruning.magnitude import achieved_sparsity, check_sparsity, keep_largest

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Pruner:
    """Masks on a model's linear and convolutional weights that no optimizer can undo.

    Each pruned module gets its own buffer ``weight_mask``, so masks are in the state dict, follow ``.to()``, and work
    with any nesting of modules. After every ``optimizer.step()`` the masked weights, and everything the optimizer
    remembers about them, are set to 0 again. A weight once pruned stays pruned.

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
        """Enforce the masks after each step of this optimizer from now on."""
        self._optimizers.append(optimizer)
        self._hooks.append(optimizer.register_step_post_hook(lambda stepped, *_: self._apply(stepped)))
        self._apply(optimizer)

    @torch.no_grad()
    def prune(self, sparsity: float, scope: str = "global") -> None:
        """Mask the smallest weights until ``round(sparsity * n)`` are masked, including those masked already.

        scope: "global" counts over all modules, "layer" in each.

        Raises:
            ValueError: no such scope; sparsity outside 0..1 or below what is masked already.
        """
        check_sparsity(sparsity)
        if scope not in ("global", "layer"):
            raise ValueError(f'scope must be "global" or "layer"; got {scope!r}')
        # Below every magnitude, so that a live weight that happens to be 0 does not take a masked one's place.
        scores = [m.weight.abs().float().masked_fill(~m.weight_mask, -1.0).flatten() for m in self.modules.values()]
        sizes = [len(each) for each in scores]
        masks: list[Tensor] = []
        for each in scores if scope == "layer" else [torch.cat(scores)]:
            count, masked = round(sparsity * len(each)), int((each < 0).sum())
            if count < masked:
                raise ValueError(
                    f"sparsity must be at least {masked / len(each):g}, the share masked already; got {sparsity}"
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
            mask = module.weight_mask.to(module.weight.dtype)  # once: several times as fast as a bool for each tensor
            module.weight.mul_(mask)
            for optimizer in optimizers:
                for value in optimizer.state.get(module.weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == mask.shape:
                        value.mul_(mask)

    @torch.no_grad()
    def rewind(self, state: Mapping[str, Tensor]) -> None:
        """Set parameters and buffers back to ``state`` (an earlier state dict), keep the masks, and clear the
        optimizers' state: training starts again, of the surviving weights only."""
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
        """Remove masks and hooks; the zeros stay."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._optimizers.clear()
        for module in self.modules.values():
            del module.weight_mask
