"""The returned student, or `Wrong`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labsupport.checks.ex07_prune_and_distill.calling import PASSED_OVER
from labsupport.checks.ex07_prune_and_distill.limits import MAX_NONZERO, MAX_PARAMETERS
from labsupport.checks.judging import Wrong, returned, unchanged
from labsupport.checks.plain import describe

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"ReLU": F.relu, "Tanh": torch.tanh, "GELU": F.gelu}


def read_student(outcome: Any, case: str) -> list[Any]:
    """The layers: [weight, bias] or the name of an activation."""
    layers = returned(outcome, case)
    unchanged(outcome, case, "teacher", "images", "labels")
    if not isinstance(layers, list):
        raise Wrong(f"train_student must return an nn.Sequential of nn.Linear and nn.ReLU; got {describe(layers)}")
    for layer in layers:
        if isinstance(layer, str) and layer not in ACTIVATIONS:
            allowed = ", ".join(["Linear", *ACTIVATIONS, *PASSED_OVER])
            raise Wrong(f"the student may hold only {allowed}; it holds a {layer[:40]}")
        if isinstance(layer, list) and not all(isinstance(t, Tensor) and t.is_floating_point() for t in layer):
            raise Wrong(f"a layer's weight must be a plain float tensor; got {describe(layer[0])}")
        if isinstance(layer, list) and not all(bool(tensor.isfinite().all()) for tensor in layer):
            raise Wrong("the student's weights contain NaN or inf: is the learning rate too large?")
    if not any(isinstance(layer, list) for layer in layers):
        raise Wrong("the student contains no nn.Linear")
    return layers


def require_small(layers: list[Any]) -> None:
    tensors = [tensor for layer in layers if isinstance(layer, list) for tensor in layer]
    size = sum(tensor.numel() for tensor in tensors)
    nonzero = sum(int((tensor != 0).sum()) for tensor in tensors)
    if size > MAX_PARAMETERS:
        raise Wrong(
            f"the student has {size:,} weights and biases, at most {MAX_PARAMETERS:,} are allowed: zeros "
            "do not make a network smaller, fewer neurons do (64 -> 16 -> 10 has 1,210)"
        )
    if nonzero > MAX_NONZERO:
        start = f"{nonzero} of the student's {size:,} weights and biases are not zero, at most {MAX_NONZERO} may be: "
        if nonzero < 0.75 * size:
            raise Wrong(f"{start}the zeros are in place, and too few; prune a larger share, biases count too")
        raise Wrong(
            f"{start}few are zero: prune with magnitude_mask, and multiply by the mask again after every optimizer step"
        )
