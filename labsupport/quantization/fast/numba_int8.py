"""Kernels for int8, compiled from Python by Numba (optional; without it, PyTorch's own kernels are used).

Decoding is limited by reading the weights from memory. `Int8Matmul` reads them as int8, one row of the weight at a
time, converts in registers, and shares each conversion among up to four rows of x. `rows_in_steps` and
`scale_rows_and_columns` do before and after a W8A8 product in one pass what takes PyTorch several.

Indices are uint64: signed ones need a test for negative values, which keeps LLVM from vectorizing.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int8
from numba import njit
from torch import Tensor

from labsupport.quantization.fast.compiled import FAST_MATH, in_threads, to_array


class Int8Matmul:
    """multiply(x) is x @ (weight * scale[:, None]).T in float32. The weight is not copied."""

    def __init__(self, weight: Int8[Tensor, "out columns"], scale: Float[Tensor, " out"]) -> None:
        self.arrays = weight.numpy(), scale.numpy()

    def __call__(self, x: Float[Tensor, "n columns"]) -> Float[Tensor, "n out"]:
        weight, scale = self.arrays
        out = np.empty((x.shape[0], weight.shape[0]), np.float32)
        in_threads(_int8_matmul, (to_array(x), weight, scale, out), weight.shape[0], weight.size)
        return torch.from_numpy(out)


def rows_in_steps(x: Float[Tensor, "n columns"]) -> tuple[Float[Tensor, "n columns"], Float[Tensor, "n 1"]]:
    """x / scale and scale = max|x| / 127 of each row, in one pass over ``x`` where PyTorch takes five."""
    source = to_array(x)
    steps, scale = np.empty(source.shape, np.float32), np.empty((source.shape[0], 1), np.float32)
    _rows_in_steps(source, steps, scale)
    return torch.from_numpy(steps), torch.from_numpy(scale)


def scale_rows_and_columns(
    x: Float[Tensor, "n columns"], rows: Float[Tensor, "n 1"], columns: Float[Tensor, " columns"]
) -> Float[Tensor, "n columns"]:
    """``x`` in place, times one factor a row and one a column."""
    _scale_rows_and_columns(x.numpy(), rows.numpy(), columns.numpy())
    return x


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def _rows_in_steps(x, steps, scale):  # type: ignore[no-untyped-def]
    U, f32 = np.uint64, np.float32
    columns = U(x.shape[1])
    for r in range(U(x.shape[0])):
        largest, not_finite = f32(0), f32(0)
        for k in range(columns):
            largest = max(largest, abs(x[r, k]))
            not_finite += f32(0) * x[r, k]
        step = max(largest * f32(1 / 127), f32(1.1754944e-38)) + not_finite
        scale[r, 0] = step
        for k in range(columns):
            steps[r, k] = x[r, k] / step


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def _scale_rows_and_columns(x, rows, columns):  # type: ignore[no-untyped-def]
    U = np.uint64
    for r in range(U(x.shape[0])):
        for k in range(U(x.shape[1])):
            x[r, k] = x[r, k] * rows[r, U(0)] * columns[k]


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def _int8_matmul(x, weight, scale, out, first, last):  # type: ignore[no-untyped-def]
    U, f32 = np.uint64, np.float32
    rows, columns = U(x.shape[0]), U(x.shape[1])
    in_fours = rows - rows % U(4)
    for o in range(U(first), U(last)):
        for r in range(U(0), in_fours, U(4)):
            sum0, sum1, sum2, sum3 = f32(0), f32(0), f32(0), f32(0)
            for k in range(columns):
                w = f32(weight[o, k])
                sum0 += w * x[r, k]
                sum1 += w * x[r + U(1), k]
                sum2 += w * x[r + U(2), k]
                sum3 += w * x[r + U(3), k]
            out[r, o], out[r + U(1), o] = sum0 * scale[o], sum1 * scale[o]
            out[r + U(2), o], out[r + U(3), o] = sum2 * scale[o], sum3 * scale[o]
        for r in range(in_fours, rows):
            sum0 = f32(0)
            for k in range(columns):
                sum0 += f32(weight[o, k]) * x[r, k]
            out[r, o] = sum0 * scale[o]
