"""int8 weights, float activations: for decoding, where reading the weights takes most of the time."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from labsupport.quantization.fast.int8_weight import Int8WeightKernel, int8_weight_kernel
from labsupport.quantization.int8 import quantize_weight_int8
from labsupport.quantization.layers.int8 import Int8Linear


class Int8WeightLinear(Int8Linear):
    """A byte per weight, one scale per output channel."""

    @classmethod
    def from_float(cls, linear: nn.Linear, saturation_free: bool = False) -> Int8WeightLinear:
        """Quantize the weight, one scale per output channel; see quantize_weight_int8."""
        return cls(*quantize_weight_int8(linear.weight, saturation_free), linear.bias)

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return self._packed_kernel()(x)

    def _make_kernel(self) -> Int8WeightKernel:
        return int8_weight_kernel(self.weight, self.weight_scale)
