"""What a layer of the model sees: the inputs that quantization and pruning are judged on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@torch.no_grad()
def layer_inputs(
    model: nn.Module, tokens: Int64[Tensor, "batch time"], names: Sequence[str]
) -> dict[str, Float[Tensor, "tokens in"]]:
    """Inputs of the named modules (such as ``"layers.2.mlp.down_proj"``) while the model reads ``tokens``.

    Raises:
        ValueError: the model has no module of a name.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"names must be modules of the model; got {unknown[0]!r}")
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].detach().flatten(0, -2)

        return modules[name].register_forward_pre_hook(hook)

    handles = [remember(name) for name in names]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return seen
