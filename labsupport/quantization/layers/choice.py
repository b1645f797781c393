"""The layer with the fastest kernel for a quantized weight."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear
from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.quantization.layers.packed import QuantizedLinear
from labsupport.quantization.qweight import QuantizedWeight


def linear_for(weight: QuantizedWeight, bias: Float[Tensor, " out"] | None = None) -> IntegerLinear:
    """4 bits, 8 bits with one symmetric scale a row, or any other grid."""
    if weight.bits == 4:
        return Int4WeightLinear(weight, bias)
    plain = weight.group_index is None and weight.input_scale is None
    if plain and weight.bits == 8 and weight.scale.shape[1] == 1 and (weight.zero_point == 128).all():
        signed = (weight.codes().to(torch.int16) - 128).to(torch.int8)
        return Int8WeightLinear(signed, weight.scale.float().squeeze(1), bias)
    return QuantizedLinear(weight, bias)


def weight_of(linear: IntegerLinear) -> QuantizedWeight:
    """The codes and the grid of a layer that `linear_for` gives.

    Raises:
        ValueError: the layer quantizes its inputs, too.
    """
    if isinstance(linear, QuantizedLinear):
        return linear.quantized_weight()
    if isinstance(linear, Int8WeightLinear):
        codes = (linear.weight.to(torch.int16) + 128).to(torch.uint8)
        scale = linear.weight_scale[:, None]
        return QuantizedWeight.from_codes(codes, scale, torch.full_like(scale, 128, dtype=torch.int32), 8, None)
    raise ValueError(f"linear must be a layer with quantized weights alone; got {type(linear).__name__}")
