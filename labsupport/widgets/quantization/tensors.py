"""What the pictures of this chapter share: checked weights and activations, cut to a size that can be drawn."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, "*shape"] | Mapping[str, Float[Tensor, "*shape"]]
MAX_VALUES = 20_000  # more cannot be distinguished in a picture
MAX_ROWS = 256


def by_name(values: Values) -> dict[str, Tensor]:
    named = dict(values) if isinstance(values, Mapping) else {"values": values}
    if not named or any(x.numel() == 0 or not bool(x.isfinite().all()) or not bool(x.any()) for x in named.values()):
        raise ValueError("values must be one tensor or several by name, each finite, not empty and not all zeros")
    return named


def choose(named: Mapping[str, Tensor]) -> ipywidgets.Widget:
    """Buttons to choose among several tensors; hidden where there is only one."""
    buttons = ipywidgets.ToggleButtons(options=list(named), description="Values", style={"button_width": "auto"})
    if len(named) == 1:
        buttons.layout.display = "none"
    return buttons


def start_of(name: str) -> str:
    return "" if name == "values" else f"{name[:1].upper()}{name[1:]}, "


def sample(x: Tensor) -> Float[Tensor, " n"]:
    """About MAX_VALUES values, evenly from the whole tensor, with its largest and smallest value."""
    x = x.detach().float().flatten()
    step = max(1, -(-x.numel() // MAX_VALUES))
    return torch.cat([x[::step], x.min()[None], x.max()[None]]) if step > 1 else x


def input_rows(inputs: Float[Tensor, "*lead in"], columns: int) -> Float[Tensor, "tokens in"]:
    if inputs.shape[-1] != columns:
        raise ValueError(f"inputs must end in the weight's {columns} input channels, got {list(inputs.shape)}")
    return inputs.detach().float().reshape(-1, columns)[:2048]


def halves(x: Float[Tensor, "tokens in"]) -> tuple[Tensor, Tensor]:
    if len(x) < 2:
        raise ValueError(f"inputs must hold at least two tokens, one half to calibrate and one to judge, got {len(x)}")
    return x[: len(x) // 2], x[len(x) // 2 :]


def output_error(moved: Float[Tensor, "n out in"], gram: Float[Tensor, "in in"]) -> np.ndarray:
    """tr(dW G dWᵀ) for each of n changes dW of a weight."""
    return ((moved @ gram) * moved).sum((1, 2)).numpy()


def power_of(x: Tensor) -> float:
    return float(x.square().mean())
