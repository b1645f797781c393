"""Float activations times packed 4-bit weights with group scales and zero points.

The first kernel in the table that supports the weight is used; where there is none, the layer dequantizes:

    Int4Cuda     CUDA, Ampere or newer, bfloat16                       aten._weight_int4pack_mm
    Int4Triton   CUDA, any other GPU or size                           triton_int4.py
    Int4Numba    CPUs, if Numba is installed                           numba_int4.py
    Int4Cpu      x86 CPUs: float32 on AVX-512, bfloat16 activations
                 on AVX2                                               aten._weight_int4pack_mm_for_cpu

Every kernel keeps the weight in a layout of its own; `unpack()` gives the original back, so nothing has to keep both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from labsupport.numerics.packing import pack, unpack
from labsupport.quantization.fast import probes
from labsupport.quantization.fast.probes import WEIGHT_ONLY_ROWS
from labsupport.quantization.qweight import QuantizedWeight, dequantize_groups


def int4_kernel(weight: QuantizedWeight, order: Int[Tensor, " in"] | None = None) -> Int4Kernel | None:
    """The fastest 4-bit kernel here, or None where there is nothing but weight.dequantize().

    It computes with codes, scales and zero points only: the caller sees to group_index and input_scale.
    order: the columns in which the codes are stored, and in which x will come; None: as they are.
    """
    return next((kernel(weight, order) for kernel in INT4_WEIGHT_KERNELS if kernel.supports(weight)), None)


class Int4Kernel:
    """kernel(x) is x @ (scale * (codes - zero_point)).T for x [n, in] float. Always owns its weight."""

    owns_weight = True

    def __init__(self, weight: QuantizedWeight, order: Int[Tensor, " in"] | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.group_size = weight.group_size

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        raise NotImplementedError

    def unpack(self) -> tuple[UInt8[Tensor, "out in"], Float[Tensor, "out groups"], UInt8[Tensor, "out groups"]]:
        """Codes (in the kernel's order of columns), scale and zero point, as they were given."""
        raise NotImplementedError

    def dequantize(self) -> Float[Tensor, "out in"]:
        """The float32 weight, its columns in the kernel's order."""
        return dequantize_groups(*self.unpack(), self.group_size)


class Int4Numba(Int4Kernel):
    """Compiled from Python, in 16-bit integers."""

    def __init__(self, weight: QuantizedWeight, order: Int[Tensor, " in"] | None = None) -> None:
        from labsupport.quantization.fast.numba_int4 import Int4Matmul

        super().__init__(weight)
        codes, zero_point = _codes(weight, order), weight.zero_point.to(torch.uint8)
        self._multiply = Int4Matmul(codes, weight.scale, zero_point, weight.group_size)

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        return (
            weight.packed.device.type == "cpu"
            and weight.shape[1] % 32 == 0
            and weight.group_size % 32 == 0
            and weight.scale.dtype == torch.float16  # from_codes keeps float32 only where float16 loses something
            and probes.has_numba()
        )

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > WEIGHT_ONLY_ROWS:
            return F.linear(x, self.dequantize().to(x.dtype))
        return self._multiply(x)

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._multiply.unpack()


class _Int4Pack(Int4Kernel):
    """PyTorch's two 4-bit kernels. Their weights mean scale * (code - 8) + zero, scale and zero as float pairs."""

    dtype: torch.dtype

    def __init__(self, weight: QuantizedWeight, order: Int[Tensor, " in"] | None = None) -> None:
        super().__init__(weight)
        self.packed = self._convert(_codes(weight, order))
        self.scale, self.zero_point = weight.scale, weight.zero_point.to(torch.uint8)
        zero = self.scale.float() * (8 - weight.zero_point)
        self.scales_and_zeros = self._pairs(self.scale.float(), zero)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > WEIGHT_ONLY_ROWS:
            return F.linear(x, self.dequantize().to(x.dtype))
        return self._multiply(x.to(self.dtype), self.scales_and_zeros).to(x.dtype)

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        # PyTorch does not document the layout; the product with the identity, at scale 1 and zero 8, is the codes.
        unit = self._pairs(torch.ones_like(self.scale, dtype=torch.float32), torch.full_like(self.scale, 8.0))
        identity = torch.eye(self.in_features, dtype=self.dtype, device=self.packed.device)
        codes = torch.cat([self._multiply(rows, unit) for rows in identity.split(256)]).T.round().to(torch.uint8)
        return codes.contiguous(), self.scale, self.zero_point

    def _pairs(self, scale: Tensor, zero: Tensor) -> Tensor:
        return torch.stack((scale.T, zero.T), dim=-1).to(self.dtype).contiguous()  # [groups, out, 2]

    def _convert(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _multiply(self, x: Tensor, scales_and_zeros: Tensor) -> Tensor:
        raise NotImplementedError


class Int4Cpu(_Int4Pack):
    """aten._weight_int4pack_mm_for_cpu."""

    def __init__(self, weight: QuantizedWeight, order: Int[Tensor, " in"] | None = None) -> None:
        self.dtype = torch.float32 if probes.cpu_has("_is_avx512_supported") else torch.bfloat16
        super().__init__(weight, order)

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        return (
            weight.packed.device.type == "cpu"
            and _fits_int4pack(weight, 16)
            and (probes.cpu_has("_is_avx512_supported") or probes.cpu_has("_is_avx2_supported"))
            and probes.works("int4pack", _probe_int4, Int4Cpu, "cpu")
        )

    def _convert(self, codes: Tensor) -> Tensor:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)

    def _multiply(self, x: Tensor, scales_and_zeros: Tensor) -> Tensor:
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        return multiply(x.contiguous(), self.packed, self.group_size, scales_and_zeros)


class Int4Cuda(_Int4Pack):
    """aten._weight_int4pack_mm."""

    dtype = torch.bfloat16

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        return (
            weight.packed.is_cuda
            and _fits_int4pack(weight, 8)
            and probes.works("int4pack", _probe_int4, Int4Cuda, "cuda")
        )

    def _convert(self, codes: Tensor) -> Tensor:
        # Columns that one thread block reads at a time, in units of 16: the most that divides the row.
        inner_k_tiles = next(tiles for tiles in (8, 4, 2) if self.in_features % (16 * tiles) == 0)
        pairs = (codes[:, ::2] << 4) | codes[:, 1::2]
        return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), inner_k_tiles)

    def _multiply(self, x: Tensor, scales_and_zeros: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm(x.contiguous(), self.packed, self.group_size, scales_and_zeros)


class Int4Triton(Int4Kernel):
    """Reads the weight as it is stored: on GPUs without bfloat16, such as a T4, and at sizes that Int4Cuda refuses."""

    def __init__(self, weight: QuantizedWeight, order: Int[Tensor, " in"] | None = None) -> None:
        super().__init__(weight)
        self.packed = weight.packed if order is None else pack(_codes(weight, order), 4, look=False)
        self.scale, self.zero_point = weight.scale, weight.zero_point.to(torch.uint8)

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        return weight.packed.is_cuda and weight.group_size % 2 == 0 and probes.has_triton()

    def __call__(self, x: Tensor) -> Tensor:
        from labsupport.quantization.fast.triton_int4 import int4_matmul

        if x.shape[0] > WEIGHT_ONLY_ROWS:
            return F.linear(x, self.dequantize().to(x.dtype))
        return int4_matmul(x, self.packed, self.scale, self.zero_point, self.group_size)

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        return unpack(self.packed, 4, self.in_features), self.scale, self.zero_point


INT4_WEIGHT_KERNELS: tuple[type[Int4Kernel], ...] = (Int4Cuda, Int4Triton, Int4Numba, Int4Cpu)


def _codes(weight: QuantizedWeight, order: Tensor | None) -> UInt8[Tensor, "out in"]:
    return weight.codes() if order is None else weight.codes()[:, order]


def _fits_int4pack(weight: QuantizedWeight, out_multiple: int) -> bool:
    out_features, in_features = weight.shape
    return (
        weight.group_size in (32, 64, 128, 256)
        and in_features % weight.group_size == 0
        and out_features % out_multiple == 0
    )


def _probe_int4(kernel: type[_Int4Pack], device: str) -> bool:
    codes = torch.arange(64 * 64, device=device).remainder(16).view(64, 64).to(torch.uint8)
    scale, zero_point = torch.full((64, 2), 0.5, device=device), torch.full((64, 2), 3, device=device)
    weight = QuantizedWeight.from_codes(codes, scale, zero_point, 4, 32)
    packed = kernel(weight)
    expected = torch.eye(64, device=device) @ weight.dequantize().T
    same = torch.equal(packed.unpack()[0], codes)
    return same and torch.allclose(packed(torch.eye(64, device=device)), expected, rtol=0.01)
