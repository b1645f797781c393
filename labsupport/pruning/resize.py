"""Smaller layers: the kept rows, columns and statistics of a state dict, and a model of the sizes it then has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def take(
    state: Mapping[str, Tensor], slices: Mapping[str, Mapping[int, Tensor]], kept_units: Tensor
) -> dict[str, Tensor]:
    """A state dict with only the kept indices of each sliced dimension; every tensor has memory of its own."""
    result = {name: tensor.detach().clone() for name, tensor in state.items()}
    for name, dims in slices.items():
        for dim, units in dims.items():
            indices = kept_units[units].nonzero().flatten().to(result[name].device)
            result[name] = result[name].index_select(dim, indices)
    return result


@torch.no_grad()
def resize(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Give the model's linear, convolutional and norm layers the sizes in ``state_dict``, and load it; returns it.

    This is how to load a pruned model: build it as it was before pruning, then ``resize(model, torch.load(file))``.

    Raises:
        ValueError: a layer of any other kind has another size.
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
