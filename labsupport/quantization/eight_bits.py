"""What 8-bit numbers of any kind do to a model: weights, and inputs if asked for, take a detour through INT8 or FP8.

The arithmetic stays in float, so this tells what a format costs in quality, and nothing about speed.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labsupport.quantization.affine import fake_quantize
from labsupport.quantization.fp8 import fp8_fake_quantize

FORMATS = ("int8", "e4m3", "e5m2")


@torch.no_grad()
def in_eight_bits(model: nn.Module, number: str, inputs: str | None = None) -> nn.Module:
    """A copy whose linear layers (not the output head) hold weights rounded to ``number``, with a scale for each row.

    Args:
        number: "int8" (symmetric), "e4m3" or "e5m2".
        inputs: the inputs of all layers whose name contains this are rounded too, with *one* scale for all that a call
            brings: the largest value sets it. "" is every layer; None (default) is no layer.

    Raises:
        ValueError: ``number`` is none of the three, or no layer's name contains ``inputs``.
    """
    if number not in FORMATS:
        raise ValueError(f"number must be one of {', '.join(FORMATS)}; got {number!r}")
    copied = copy.deepcopy(model)
    layers = {n: m for n, m in copied.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    chosen = [layer for name, layer in layers.items() if inputs is not None and inputs in name]
    if inputs is not None and not chosen:
        raise ValueError(
            f"inputs must be part of the name of a linear layer, such as {next(iter(layers))!r}; got {inputs!r}"
        )
    for layer in layers.values():
        layer.weight.data = _round(layer.weight.data, number, axis=0)
    for layer in chosen:
        layer.register_forward_pre_hook(lambda _, args: (_round(args[0], number), *args[1:]))
    return copied


def _round(x: Float[Tensor, "*shape"], number: str, axis: int | None = None) -> Float[Tensor, "*shape"]:
    if number == "int8":
        return fake_quantize(x, symmetric=True, axis=axis)
    return fp8_fake_quantize(x, number, axis=axis)
