"""int8 activations times int8 weights (W8A8), with exact integer sums.

The first kernel in the table that supports the weight is used:

    IntMM     CUDA, and CPUs with AVX-512 VNNI    torch._int_mm
    Fbgemm    other x86 CPUs (AVX2)               torch.ops.quantized
    FloatMM   every other machine                 float32 matmul of the integers

A kernel is made from a weight once and called many times. Fbgemm copies the weight into a layout of its own
(`owns_weight`); `unpack()` gives the original back, so nothing has to keep both.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor

from labsupport.quantization.fast import probes
from labsupport.quantization.fast.probes import worst_case

# Every partial sum of 1024 products of int8 values is below 2**24, and so exact in float32.
_EXACT_COLUMNS = 1024


def int8_kernel(weight: Int8[Tensor, "out in"]) -> Int8Kernel:
    """The fastest W8A8 kernel for this weight here: kernel(x) is x @ weight.T, int32 or (whole numbers in) float32.

    Exact for all int8 values; float32 sums beyond 2**24 are rounded to its 24 bits.
    """
    return next(kernel(weight) for kernel in INT8_KERNELS if kernel.supports(weight))


def saturation_free_limit(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out 1"]:
    """The smallest scale of each row for which the AVX2 kernel needs one pass, see Fbgemm: max|w_2i + w_2i+1| / 128."""
    pairs = F.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2)).sum(-1)
    # Half an integer per weight for rounding: two weights that both round up add 1 to the sum.
    return pairs.abs().amax(1, keepdim=True) / 127


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
    """torch._int_mm. The second factor must be the transposed view of a contiguous matrix: our weight as it is."""

    @staticmethod
    def supports(weight: Tensor) -> bool:
        if weight.device.type == "cpu":
            return probes.has_vnni() and probes.works("int_mm", _probe_int_mm)
        # cuBLASLt requires multiples of 8.
        return weight.is_cuda and weight.shape[0] % 8 == 0 and weight.shape[1] % 8 == 0 and hasattr(torch, "_int_mm")

    def __call__(self, x: Tensor) -> Int[Tensor, "n out"]:
        x, n = _whole(x).to(torch.int8), x.shape[0]
        if x.is_cuda:
            rows = F.pad(x, (0, 0, 0, max(32, n + -n % 8) - n))  # cuBLASLt refuses 16 rows and fewer
            return torch._int_mm(rows, self.weight.t())[:n]
        # oneDNN falls back to slower code above 256 rows.
        return torch.cat([torch._int_mm(rows, self.weight.t()) for rows in x.split(256)])


class Fbgemm(Int8Kernel):
    """FBGEMM, PyTorch's int8 library for x86 CPUs; AVX2 is enough for it.

    Without VNNI it multiplies with vpmaddubsw: unsigned 8-bit activations times signed weights, two neighbouring
    products summed in *16 bits with saturation*: 255 * 127 * 2 does not fit, and the result is wrong with no warning.
    PyTorch's own remedy is `reduce_range`, one bit less for everything. Two finer ones, both exact:

    - activations are stored as x + 128 <= 255, so a pair of weights is safe if |w_2i + w_2i+1| <= 128
      (255 * 128 < 2**15; of unlike sign they cannot saturate). Such weights take one pass: a quantizer can ensure
      this at the cost of a fraction of a bit (`saturation_free_limit`);
    - any other weights: x = (x >> 1) + (x - (x >> 1)), and both halves, stored + 64, are at most 128
      (2 * 128 * 127 < 2**15, 2 * 128 * -128 = -2**15). Twice the rows, but in one call: the weights, which
      dominate the time at small batches, are still read once.
    """

    owns_weight = True

    def __init__(self, weight: Tensor) -> None:
        pairs = F.pad(weight.short(), (0, weight.shape[1] % 2)).unflatten(1, (-1, 2)).sum(-1)
        self.one_pass = not bool((pairs.abs() > 128).any())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantized tensors are deprecated; the operator accepts nothing else
            quantized = torch._make_per_tensor_quantized_tensor(weight.contiguous(), 1.0, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        return weight.device.type == "cpu" and weight.numel() > 0 and probes.works("fbgemm", _probe_fbgemm)

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


def _probe_int_mm() -> bool:
    product = IntMM(worst_case(8, -127))(worst_case(2, 127))
    return bool((product == -127 * 127 * 64).all())


def _probe_fbgemm() -> bool:
    """Both modes of Fbgemm, each on the most extreme values it may be given."""
    two_passes = all(
        (Fbgemm(worst_case(8, w))(worst_case(2, x)) == w * x * 64).all() for w in (127, -128) for x in (127, -128)
    )
    one_pass = all(
        (Fbgemm(worst_case(8, w))(worst_case(2, x)) == w * x * 64).all() for w in (64, -64) for x in (127, -128)
    )
    return two_passes and one_pass
