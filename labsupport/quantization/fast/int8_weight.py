"""Float activations times int8 weights, for decoding, where reading the weights takes most of the time.

The first kernel in the table that supports the weight is used:

    Int8Numba    CPUs without AVX-512, if Numba is installed    numba_int8.py
    Int8Pack     CPUs with AVX-512, ARM: float32;
                 AVX2: bfloat16 activations; CUDA               aten._weight_int8pack_mm
    Dequantize   every other machine
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

from labsupport.quantization.fast import probes
from labsupport.quantization.fast.probes import WEIGHT_ONLY_ROWS, worst_case


def int8_weight_kernel(weight: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> Int8WeightKernel:
    """The fastest kernel for float activations here: kernel(x) is x @ (weight * scale[:, None]).T."""
    return next(kernel(weight, scale) for kernel in INT8_WEIGHT_KERNELS if kernel.supports(weight))


class Int8WeightKernel:
    """kernel(x) is x @ (weight * scale[:, None]).T for x [n, in] float."""

    owns_weight = False

    def __init__(self, weight: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> None:
        self.weight, self.scale = weight, scale

    @staticmethod
    def supports(weight: Int8[Tensor, "out in"]) -> bool:
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        # One scale per output: it multiplies the n * out results, not the weight.
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)

    def unpack(self) -> Int8[Tensor, "out in"]:
        return self.weight


class Dequantize(Int8WeightKernel):
    """No kernel: the weight is converted to float at every call."""

    @staticmethod
    def supports(weight: Tensor) -> bool:
        return True


class Int8Numba(Int8WeightKernel):
    """Compiled from Python; reads the weight in our own layout."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        from labsupport.quantization.fast.numba_int8 import Int8Matmul

        super().__init__(weight, scale)
        self._multiply = Int8Matmul(weight, scale)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        return weight.device.type == "cpu" and not probes.cpu_has("_is_avx512_supported") and probes.has_numba()

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > WEIGHT_ONLY_ROWS:
            return super().__call__(x)
        return self._multiply(x)


class Int8Pack(Int8WeightKernel):
    """aten._weight_int8pack_mm, which converts int8 to float in registers; reads our own layout.

    On AVX2 it is fast for bfloat16 only: x and the result are rounded to 8 bits of mantissa.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__(weight, scale)
        self.dtype = torch.bfloat16 if weight.device.type == "cpu" and probes.avx2_at_most() else None

    @staticmethod
    def supports(weight: Tensor) -> bool:
        # If its vector width does not divide the columns, it reads past the end of the weight.
        fits = weight.shape[1] % 32 == 0 and weight.device.type in ("cpu", "cuda")
        return fits and probes.works("int8pack", _probe_int8pack, weight.device.type)

    def __call__(self, x: Tensor) -> Tensor:
        if not 0 < x.shape[0] <= WEIGHT_ONLY_ROWS:
            return super().__call__(x)
        dtype = self.dtype or x.dtype
        product = torch.ops.aten._weight_int8pack_mm(x.to(dtype).contiguous(), self.weight, self.scale.to(dtype))
        return product.to(x.dtype)


INT8_WEIGHT_KERNELS: tuple[type[Int8WeightKernel], ...] = (Int8Numba, Int8Pack, Dequantize)


def _probe_int8pack(device: str) -> bool:
    weight, scale = worst_case(32, 127).to(device), torch.full((32,), 0.5, device=device)
    x = torch.ones(1, 64, device=device)
    return torch.allclose(Int8Pack(weight, scale)(x), torch.full((1, 32), 127 * 64 / 2, device=device), rtol=0.01)
