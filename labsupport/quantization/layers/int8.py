"""What the layers with int8 weights share: one scale per output channel."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from labsupport.quantization.layers.integer import IntegerLinear


class Int8Linear(IntegerLinear):
    """weight: [out, in] int8; weight_scale: [out] float32."""

    def __init__(
        self,
        weight: Int8[Tensor, "out in"],
        weight_scale: Float[Tensor, " out"],
        bias: Float[Tensor, " out"] | None = None,
    ) -> None:
        _check_int8(weight, weight_scale)
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("weight_scale", weight_scale.float())

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.weight.float() * self.weight_scale[:, None]


def _check_int8(weight: Tensor, weight_scale: Tensor) -> None:
    if weight.dtype != torch.int8 or weight.dim() != 2:
        raise ValueError(f"weight must be int8 of shape [out, in], got {weight.dtype} {list(weight.shape)}")
    if tuple(weight_scale.shape) != (weight.shape[0],):
        raise ValueError(f"weight_scale must have shape [{weight.shape[0]}], got {list(weight_scale.shape)}")
