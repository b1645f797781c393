"""Packed 4-bit weights with group scales and zero points; float activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from labsupport.quantization.fast.int4 import Int4Kernel, int4_kernel
from labsupport.quantization.layers.packed import QuantizedLinear
from labsupport.quantization.qweight import QuantizedWeight


class Int4WeightLinear(QuantizedLinear):
    """Half a byte per weight, plus the scales and zero points of its groups. GPTQ and AWQ end here."""

    def __init__(self, weight: QuantizedWeight, bias: Float[Tensor, " out"] | None = None) -> None:
        if weight.bits != 4:
            raise ValueError(f"weight must have 4 bits, got {weight.bits}; QuantizedLinear takes 2 to 8")
        super().__init__(weight, bias)

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return self._packed_kernel()(x)

    def _make_kernel(self) -> Int4Kernel | _Int4Columns | _Dequantizing:
        weight = self.quantized_weight()
        if weight.group_index is None and weight.input_scale is None:
            kernel: Int4Kernel | _Int4Columns | None = int4_kernel(weight)
        else:
            kernel = _Int4Columns.around(weight)
        return _Dequantizing(weight) if kernel is None else kernel

    def _unpacked(self, kernel: Int4Kernel | _Int4Columns) -> dict[str, Tensor | None]:
        columns = (kernel.group_index, kernel.input_scale) if isinstance(kernel, _Int4Columns) else (None, None)
        weight = QuantizedWeight.from_codes(*kernel.unpack(), 4, self.group_size, *columns)
        return {name: getattr(weight, name) for name in self._owned}


@dataclass
class _Int4Columns:
    """A 4-bit kernel and what must happen to its inputs: AWQ's division, GPTQ's order of columns."""

    kernel: Int4Kernel
    input_scale: Float[Tensor, " in"] | None
    group_index: Int[Tensor, " in"] | None
    order: Int[Tensor, " in"] | None  # columns of one group side by side

    owns_weight = True

    @classmethod
    def around(cls, weight: QuantizedWeight) -> _Int4Columns | None:
        """None where no kernel fits, or the groups differ in size."""
        order = None
        if weight.group_index is not None:
            order = torch.argsort(weight.group_index, stable=True)
            consecutive = torch.arange(len(order), device=order.device) // weight.group_size
            if not torch.equal(weight.group_index[order].long(), consecutive):
                return None
        kernel = int4_kernel(weight, order)
        return None if kernel is None else cls(kernel, weight.input_scale, weight.group_index, order)

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        if self.input_scale is not None:
            x = x / self.input_scale
        return self.kernel(x if self.order is None else x[:, self.order])

    def unpack(self) -> tuple[UInt8[Tensor, "out in"], Float[Tensor, "out groups"], UInt8[Tensor, "out groups"]]:
        """Codes in the weight's own order of columns, scale and zero point."""
        codes, scale, zero_point = self.kernel.unpack()
        return codes if self.order is None else codes[:, self.order.argsort()], scale, zero_point


@dataclass
class _Dequantizing:
    """Where there is no kernel."""

    weight: QuantizedWeight

    owns_weight = False

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return F.linear(x, self.weight.dequantize().to(x.dtype))
