"""Which integer matmuls this machine has, and one function for each job.

The tables below are searched from the top; the first entry that supports the weight is used.

    INT8_KERNELS         int8 activations x int8 weights (W8A8), exact integer sums
        IntMM            CUDA, and CPUs with AVX-512 VNNI          torch._int_mm
        Fbgemm           other x86 CPUs (AVX2)                     torch.ops.quantized
        FloatMM          every other machine                       float32 matmul of the integers
    INT8_WEIGHT_KERNELS  float activations x int8 weights
        Int8Numba        CPUs without AVX-512, if Numba is there   numba_kernels.py
        Int8Pack         CPUs with AVX-512, ARM: float32;
                         AVX2: bfloat16 activations; CUDA          aten._weight_int8pack_mm
        Dequantize       every other machine
    INT4_WEIGHT_KERNELS  float activations x packed 4-bit weights with group scales and zero points
        Int4Cuda         CUDA, Ampere or newer, bfloat16           aten._weight_int4pack_mm
        Int4Numba        CPUs, if Numba is installed               numba_kernels.py
        Int4Cpu          x86 CPUs: float32 on AVX-512,
                         bfloat16 activations on AVX2              aten._weight_int4pack_mm_for_cpu
        (none)           every other machine                       dequantizes

A kernel is made from a weight once and called many times. Some copy the weight into a layout of their own
(`owns_weight`); `unpack()` gives the original back, so nobody needs to keep both. Operators that PyTorch does not
promise to keep are tried out once (`_works`), against a known answer, and done without if that fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor

from labsupport.quantization.qweight import QuantizedWeight

# Every partial sum of 1024 products of int8 values is below 2**24, and so exact in float32.
_EXACT_COLUMNS = 1024
# Above this many rows a matmul is limited by arithmetic, and dequantizing once is cheaper than unpacking for each row.
_WEIGHT_ONLY_ROWS = 128


def int8_matmul(x: Int8[Tensor, "n in"], weight: Int8[Tensor, "out in"]) -> Tensor:
    """x @ weight.T in integer arithmetic: [n, out], int32 or (whole numbers in) float32.

    Exact for all int8 values; float32 sums beyond 2**24 are rounded to its 24 bits. For repeated use, keep the kernel:
    ``kernel = int8_kernel(weight); kernel(x)``.
    """
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.dtype != torch.int8 or tensor.dim() != 2:
            raise ValueError(f"{name} must be int8 with two dimensions, got {tensor.dtype} {list(tensor.shape)}")
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x and weight must have the same number of columns, got {x.shape[1]} and {weight.shape[1]}")
    return int8_kernel(weight)(x)


def int8_kernel(weight: Int8[Tensor, "out in"]) -> Int8Kernel:
    """The fastest exact W8A8 kernel for this weight here."""
    return next(kernel(weight) for kernel in INT8_KERNELS if kernel.supports(weight))


def int8_weight_kernel(weight: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> Int8WeightKernel:
    """The fastest kernel for float activations here: kernel(x) is x @ (weight * scale[:, None]).T."""
    return next(kernel(weight, scale) for kernel in INT8_WEIGHT_KERNELS if kernel.supports(weight))


def int4_kernel(weight: QuantizedWeight) -> Int4Kernel | None:
    """The fastest 4-bit kernel here, or None where weight.dequantize() is all there is.

    It computes with codes, scales and zero points; group_index and input_scale are the caller's business.
    """
    return next((kernel(weight) for kernel in INT4_WEIGHT_KERNELS if kernel.supports(weight)), None)


def available_kernels(device: str = "cpu") -> dict[str, str]:
    """The kernel that each job gets on this machine, by name, for a weight of ordinary shape."""
    codes = torch.zeros(64, 64, dtype=torch.uint8, device=device)
    ones = torch.ones(64, 1, device=device)
    int4 = QuantizedWeight.from_codes(codes, ones, torch.zeros_like(ones, dtype=torch.int32), bits=4, group_size=64)
    weight = codes.to(torch.int8)
    kernels = {
        "int8 weights and activations": int8_kernel(weight),
        "int8 weights": int8_weight_kernel(weight, ones[:, 0]),
        "int4 weights": int4_kernel(int4),
    }
    return {job: "Dequantize" if kernel is None else type(kernel).__name__ for job, kernel in kernels.items()}


def saturation_free_limit(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out 1"]:
    """The smallest scale of each row for which the AVX2 kernel needs one pass, see Fbgemm: max|w_2i + w_2i+1| / 128."""
    pairs = F.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2)).sum(-1)
    # Half an integer a weight for rounding: two weights that both round up add 1 to the sum.
    return pairs.abs().amax(1, keepdim=True) / 127


# ---------------------------------------------------------------------------------------------------- int8 x int8


class Int8Kernel:
    """kernel(x) is x @ weight.T for x [n, in] of whole numbers -128..127 in any dtype; others are rounded first."""

    owns_weight = False

    def __init__(self, weight: Int8[Tensor, "out in"]) -> None:
        self.weight = weight

    @staticmethod
    def supports(weight: Int8[Tensor, "out in"]) -> bool:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def unpack(self) -> Int8[Tensor, "out in"]:
        return self.weight


class IntMM(Int8Kernel):
    """torch._int_mm. It wants the second factor as the transposed view of a contiguous matrix: our weight as it is."""

    @staticmethod
    def supports(weight: Tensor) -> bool:
        if weight.device.type == "cpu":
            return has_vnni() and _works("int_mm", _probe_int_mm)
        # cuBLASLt asks for multiples of 8.
        return weight.is_cuda and weight.shape[0] % 8 == 0 and weight.shape[1] % 8 == 0 and hasattr(torch, "_int_mm")

    def __call__(self, x: Tensor) -> Int[Tensor, "n out"]:
        x, n = _whole(x).to(torch.int8), x.shape[0]
        if x.is_cuda:
            rows = F.pad(x, (0, 0, 0, max(32, n + -n % 8) - n))  # cuBLASLt refuses 16 rows and fewer
            return torch._int_mm(rows, self.weight.t())[:n]
        # oneDNN falls back to slower code above 256 rows.
        return torch.cat([torch._int_mm(rows, self.weight.t()) for rows in x.split(256)])


class Fbgemm(Int8Kernel):
    """FBGEMM, PyTorch's int8 library for x86 CPUs, which AVX2 alone is enough for.

    Without VNNI it multiplies with vpmaddubsw: unsigned 8-bit activations times signed weights, two neighbouring
    products summed in *16 bits with saturation*: 255 * 127 * 2 does not fit, and the result is wrong with no warning.
    PyTorch's own remedy is `reduce_range`, one bit less for everything. Two finer ones, both exact:

    - activations are stored as x + 128 <= 255, so a pair of weights is safe if |w_2i + w_2i+1| <= 128
      (255 * 128 < 2**15; of unlike sign they cannot saturate). Such weights take one pass: quantizers can see to it
      at the cost of a fraction of a bit (`saturation_free_limit`);
    - any other weights: x = (x >> 1) + (x - (x >> 1)), and both halves, stored + 64, are at most 128
      (2 * 128 * 127 < 2**15, 2 * 128 * -128 = -2**15). Twice the rows, in the same call, so the weights, which are what
      takes the time at small batches, are still read once.
    """

    owns_weight = True

    def __init__(self, weight: Tensor) -> None:
        pairs = F.pad(weight.short(), (0, weight.shape[1] % 2)).unflatten(1, (-1, 2)).sum(-1)
        self.one_pass = not bool((pairs.abs() > 128).any())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantized tensors are deprecated; this is the operator's only input
            quantized = torch._make_per_tensor_quantized_tensor(weight.contiguous(), 1.0, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        return weight.device.type == "cpu" and weight.numel() > 0 and _works("fbgemm", _probe_fbgemm)

    def __call__(self, x: Tensor) -> Float[Tensor, "n out"]:
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        x = x.float()
        if x.shape[0] == 0:
            return x.new_empty(0, self.unpack().shape[0])
        if self.one_pass:
            return multiply(x, 1.0, 128, self._packed)  # scale, zero point: round(x) + 128 as unsigned bytes
        half = (x / 2).floor()
        first, second = multiply(torch.cat((half, x - half)), 1.0, 64, self._packed).chunk(2)
        return first + second

    def unpack(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ops.quantized.linear_unpack(self._packed)[0].int_repr()


class FloatMM(Int8Kernel):
    """No integer kernel: the integers multiplied in float32, in pieces of columns small enough to be exact."""

    @staticmethod
    def supports(weight: Tensor) -> bool:
        return True

    def __call__(self, x: Tensor) -> Float[Tensor, "n out"]:
        pieces = zip(_whole(x).split(_EXACT_COLUMNS, 1), self.weight.split(_EXACT_COLUMNS, 1), strict=True)
        return (
            torch.stack([piece.float() @ columns.float().T for piece, columns in pieces])
            .sum(0, dtype=torch.float64)
            .float()
        )


INT8_KERNELS: tuple[type[Int8Kernel], ...] = (IntMM, Fbgemm, FloatMM)


def _whole(x: Tensor) -> Tensor:
    return x.round() if x.is_floating_point() else x


# --------------------------------------------------------------------------------------------------- float x int8


class Int8WeightKernel:
    """kernel(x) is x @ (weight * scale[:, None]).T for x [n, in] float."""

    owns_weight = False

    def __init__(self, weight: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> None:
        self.weight, self.scale = weight, scale

    @staticmethod
    def supports(weight: Int8[Tensor, "out in"]) -> bool:
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        # The scale belongs to the output: nothing is multiplied by it but n * out numbers.
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)

    def unpack(self) -> Int8[Tensor, "out in"]:
        return self.weight


class Dequantize(Int8WeightKernel):
    @staticmethod
    def supports(weight: Tensor) -> bool:
        return True


class Int8Numba(Int8WeightKernel):
    """Compiled from Python. It reads our layout."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        from labsupport.quantization.fast.numba_kernels import Int8Matmul

        super().__init__(weight, scale)
        self._multiply = Int8Matmul(weight, scale)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        return weight.device.type == "cpu" and not _cpu_has("_is_avx512_supported") and has_numba()

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > _WEIGHT_ONLY_ROWS:
            return super().__call__(x)
        return self._multiply(x)


class Int8Pack(Int8WeightKernel):
    """aten._weight_int8pack_mm, which converts int8 to float in registers. It reads our layout.

    On AVX2 it is fast for bfloat16 only: x and the result are rounded to 8 bits of mantissa.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__(weight, scale)
        self.dtype = torch.bfloat16 if weight.device.type == "cpu" and _avx2_at_most() else None

    @staticmethod
    def supports(weight: Tensor) -> bool:
        # With columns that its vectors do not divide it reads past the end of memory.
        fits = weight.shape[1] % 32 == 0 and weight.device.type in ("cpu", "cuda")
        return fits and _works("int8pack", _probe_int8pack, weight.device.type)

    def __call__(self, x: Tensor) -> Tensor:
        if not 0 < x.shape[0] <= _WEIGHT_ONLY_ROWS:
            return super().__call__(x)
        dtype = self.dtype or x.dtype
        product = torch.ops.aten._weight_int8pack_mm(x.to(dtype).contiguous(), self.weight, self.scale.to(dtype))
        return product.to(x.dtype)


INT8_WEIGHT_KERNELS: tuple[type[Int8WeightKernel], ...] = (Int8Numba, Int8Pack, Dequantize)


# --------------------------------------------------------------------------------------------------- float x int4


class Int4Kernel:
    """kernel(x) is x @ (scale * (codes - zero_point)).T for x [n, in] float. Always owns its weight."""

    owns_weight = True

    def __init__(self, weight: QuantizedWeight) -> None:
        self.out_features, self.in_features = weight.shape
        self.group_size = weight.group_size

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        raise NotImplementedError

    def unpack(self) -> QuantizedWeight:
        raise NotImplementedError


class Int4Numba(Int4Kernel):
    def __init__(self, weight: QuantizedWeight) -> None:
        from labsupport.quantization.fast.numba_kernels import Int4Matmul

        super().__init__(weight)
        self._multiply = Int4Matmul(weight.codes(), weight.scale, weight.zero_point.to(torch.uint8), weight.group_size)

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        return (
            weight.packed.device.type == "cpu"
            and weight.shape[1] % 32 == 0
            and weight.group_size % 32 == 0
            and weight.scale.dtype == torch.float16  # from_codes keeps float32 only where float16 loses something
            and has_numba()
        )

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > _WEIGHT_ONLY_ROWS:
            return F.linear(x, self.unpack().dequantize().to(x.dtype))
        return self._multiply(x)

    def unpack(self) -> QuantizedWeight:
        codes, scale, zero_point = self._multiply.unpack()
        return QuantizedWeight.from_codes(codes, scale, zero_point.to(torch.int32), 4, self.group_size)


class _Int4Pack(Int4Kernel):
    """PyTorch's two 4-bit kernels. Their weights mean scale * (code - 8) + zero, scale and zero as float pairs."""

    dtype: torch.dtype

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__(weight)
        self.packed = self._convert(weight.codes())
        self.scale, self.zero_point = weight.scale, weight.zero_point.to(torch.uint8)
        zero = self.scale.float() * (8 - weight.zero_point)
        self.scales_and_zeros = self._pairs(self.scale.float(), zero)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > _WEIGHT_ONLY_ROWS:
            return F.linear(x, self.unpack().dequantize().to(x.dtype))
        return self._multiply(x.to(self.dtype), self.scales_and_zeros).to(x.dtype)

    def unpack(self) -> QuantizedWeight:
        # The layout is PyTorch's secret; the product with the identity, at scale 1 and zero 8, is the codes.
        unit = self._pairs(torch.ones_like(self.scale, dtype=torch.float32), torch.full_like(self.scale, 8.0))
        identity = torch.eye(self.in_features, dtype=self.dtype, device=self.packed.device)
        codes = torch.cat([self._multiply(rows, unit) for rows in identity.split(256)]).T.round().to(torch.uint8)
        return QuantizedWeight.from_codes(codes.contiguous(), self.scale, self.zero_point.int(), 4, self.group_size)

    def _pairs(self, scale: Tensor, zero: Tensor) -> Tensor:
        return torch.stack((scale.T, zero.T), dim=-1).to(self.dtype).contiguous()  # [groups, out, 2]

    def _convert(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _multiply(self, x: Tensor, scales_and_zeros: Tensor) -> Tensor:
        raise NotImplementedError


class Int4Cpu(_Int4Pack):
    def __init__(self, weight: QuantizedWeight) -> None:
        self.dtype = torch.float32 if _cpu_has("_is_avx512_supported") else torch.bfloat16
        super().__init__(weight)

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        return (
            weight.packed.device.type == "cpu"
            and _fits_int4pack(weight, 16)
            and (_cpu_has("_is_avx512_supported") or _cpu_has("_is_avx2_supported"))
            and _works("int4pack", _probe_int4, Int4Cpu, "cpu")
        )

    def _convert(self, codes: Tensor) -> Tensor:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)

    def _multiply(self, x: Tensor, scales_and_zeros: Tensor) -> Tensor:
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        return multiply(x.contiguous(), self.packed, self.group_size, scales_and_zeros)


class Int4Cuda(_Int4Pack):
    dtype = torch.bfloat16

    @staticmethod
    def supports(weight: QuantizedWeight) -> bool:
        return weight.packed.is_cuda and _fits_int4pack(weight, 8) and _works("int4pack", _probe_int4, Int4Cuda, "cuda")

    def _convert(self, codes: Tensor) -> Tensor:
        # Columns that one thread block reads at a time, in units of 16: the most that divides the row.
        inner_k_tiles = next(tiles for tiles in (8, 4, 2) if self.in_features % (16 * tiles) == 0)
        pairs = (codes[:, ::2] << 4) | codes[:, 1::2]
        return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), inner_k_tiles)

    def _multiply(self, x: Tensor, scales_and_zeros: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm(x.contiguous(), self.packed, self.group_size, scales_and_zeros)


INT4_WEIGHT_KERNELS: tuple[type[Int4Kernel], ...] = (Int4Cuda, Int4Numba, Int4Cpu)


def _fits_int4pack(weight: QuantizedWeight, out_multiple: int) -> bool:
    out_features, in_features = weight.shape
    return (
        weight.group_size in (32, 64, 128, 256)
        and in_features % weight.group_size == 0
        and out_features % out_multiple == 0
    )


# -------------------------------------------------------------------------------------------- what is there, and works


def has_vnni() -> bool:
    """AVX-512 VNNI: one instruction multiplies int8 and sums in 32 bits, without saturation."""
    return _cpu_has("_is_vnni_supported")


@cache
def has_numba() -> bool:
    try:
        from labsupport.quantization.fast import numba_kernels  # noqa: F401
    except (ImportError, RuntimeError):  # not there, too old for the NumPy beside it, or nowhere to keep compiled code
        return False
    return True


def _avx2_at_most() -> bool:
    return _cpu_has("_is_avx2_supported") and not _cpu_has("_is_avx512_supported")


@cache
def _cpu_has(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, lambda: False)())


_PROBED: dict[tuple[Any, ...], bool] = {}


def _works(name: str, probe: Callable[..., bool], *arguments: Any) -> bool:
    """Whether an operator exists here and gives the right answer to a small question. Asked once."""
    key = (name, *arguments)
    if key not in _PROBED:
        try:
            _PROBED[key] = probe(*arguments)
        except Exception:  # gone, renamed, other arguments, not for this CPU: whatever it is, the next kernel will do
            _PROBED[key] = False
    return _PROBED[key]


def _worst_case(rows: int, value: int) -> Tensor:
    return torch.full((rows, 64), value, dtype=torch.int8)


def _probe_int_mm() -> bool:
    product = IntMM(_worst_case(8, -127))(_worst_case(2, 127))
    return bool((product == -127 * 127 * 64).all())


def _probe_fbgemm() -> bool:
    """Both ways of Fbgemm, at the worst that each may be given."""
    two_passes = all(
        (Fbgemm(_worst_case(8, w))(_worst_case(2, x)) == w * x * 64).all() for w in (127, -128) for x in (127, -128)
    )
    one_pass = all(
        (Fbgemm(_worst_case(8, w))(_worst_case(2, x)) == w * x * 64).all() for w in (64, -64) for x in (127, -128)
    )
    return two_passes and one_pass


def _probe_int8pack(device: str) -> bool:
    weight, scale = _worst_case(32, 127).to(device), torch.full((32,), 0.5, device=device)
    x = torch.ones(1, 64, device=device)
    return torch.allclose(Int8Pack(weight, scale)(x), torch.full((1, 32), 127 * 64 / 2, device=device), rtol=0.01)


def _probe_int4(kernel: type[_Int4Pack], device: str) -> bool:
    codes = torch.arange(64 * 64, device=device).remainder(16).view(64, 64).to(torch.uint8)
    scale, zero_point = torch.full((64, 2), 0.5, device=device), torch.full((64, 2), 3, device=device)
    weight = QuantizedWeight.from_codes(codes, scale, zero_point, 4, 32)
    packed = kernel(weight)
    expected = torch.eye(64, device=device) @ weight.dequantize().T
    same = torch.equal(packed.unpack().codes(), codes)
    return same and torch.allclose(packed(torch.eye(64, device=device)), expected, rtol=0.01)
