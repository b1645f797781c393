"""What a layer of the model reads and returns: the tensors that quantization, pruning and distillation look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@torch.no_grad()
def layer_inputs(
    model: nn.Module, tokens: Int64[Tensor, "batch time"], names: Sequence[str]
) -> dict[str, Float[Tensor, "tokens in"]]:
    """Inputs of the named modules (such as ``"layers.2.mlp.down_proj"``) while the model reads ``tokens``.

    Raises:
        ValueError: the model has no module of that name.
    """
    with captured_inputs(model, names) as seen:
        model(tokens.to(next(model.parameters()).device))
    return {name: calls[-1].detach().flatten(0, -2) for name, calls in seen.items() if calls}


@contextmanager
def captured_inputs(
    model: nn.Module, names: Iterable[str], gradients: bool = False
) -> Iterator[dict[str, list[Tensor]]]:
    """The first argument of each named module, call by call, of every forward pass within the block.

    gradients: each module is handed a copy, so that its ``grad`` after a backward pass is by way of this module only.
        Needs a forward pass with gradients enabled.

    Raises:
        ValueError: the model has no module of that name.
    """
    seen: dict[str, list[Tensor]] = {}

    def register(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = arguments[0]
            if gradients:
                x = x.clone()
                x = x if x.requires_grad else x.requires_grad_()
                x.retain_grad()
            seen[name].append(x)
            return (x, *arguments[1:])

        return module.register_forward_pre_hook(hook)

    with _hooked(model, names, seen, register):
        yield seen


@contextmanager
def captured_outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What each named module returns (the first element of a tuple), call by call, of every forward pass within the
    block. Gradients flow through them as in the model.

    Raises:
        ValueError: the model has no module of that name.
    """
    seen: dict[str, list[Tensor]] = {}

    def register(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            seen[name].append(output[0] if isinstance(output, tuple) else output)

        return module.register_forward_hook(hook)

    with _hooked(model, names, seen, register):
        yield seen


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards each submodule is in the mode that it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _hooked(
    model: nn.Module,
    names: Iterable[str],
    seen: dict[str, list[Tensor]],
    register: Callable[[str, nn.Module], torch.utils.hooks.RemovableHandle],
) -> Iterator[None]:
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"names must be modules of the model; got {name!r}")
        seen[name] = []
    handles = [register(name, modules[name]) for name in seen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
