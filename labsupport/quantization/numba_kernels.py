"""Weight-only matmuls in Python, compiled by Numba (optional; without it, kernels.py takes PyTorch's own kernels).

Reading the weights from memory is what a decode step costs. A kernel that reads int8 or packed 4-bit weights wins as
much as its unpacking can keep up, so the inner loops below are written for LLVM to vectorise:

- int8: along a row of the weight; up to 4 rows of x share each conversion to float;
- int4: the innermost loop runs over 64 *outputs*, side by side in memory (`tile`). The nibbles of a byte are outputs j
  and j + 32, so both halves are contiguous. The high one is used as it lies, 16 times too large, and its scale is
  divided by 16, which is exact. For several rows of x, 8 inputs' weights at a time are unpacked to a buffer that stays
  in the first-level cache;
- indices are uint64: with signed ones comes a test for negative indices, which stops the vectoriser.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float16, Int8, UInt8
from numba import njit
from torch import Tensor

OUTPUTS = 64  # outputs a block of the int4 kernel: 32 bytes
INPUTS = 8  # inputs that it unpacks at a time
_WEIGHTS_A_THREAD = 2**20  # with fewer, waking a thread costs more than it saves
_FAST = {"contract", "reassoc", "nsz"}  # sums in any order; NaN and infinity keep their meaning


class Int8Matmul:
    """multiply(x) is x @ (weight * scale[:, None]).T in float32. The weight is read where it lies."""

    def __init__(self, weight: Int8[Tensor, "out columns"], scale: Float[Tensor, " out"]) -> None:
        self.arrays = weight.numpy(), scale.numpy()

    def __call__(self, x: Float[Tensor, "n columns"]) -> Float[Tensor, "n out"]:
        weight, scale = self.arrays
        out = np.empty((x.shape[0], weight.shape[0]), np.float32)
        _in_threads(_int8_matmul, (_array(x), weight, scale, out), weight.shape[0], weight.size)
        return torch.from_numpy(out)


class Int4Matmul:
    """multiply(x) is x @ (scale * (codes - zero_point)).T in float32, for group_size and columns that 8 divides.

    codes: [out, columns] 0..15; scale: [out, groups], positive; zero_point: [out, groups] 0..15.
    """

    def __init__(
        self,
        codes: UInt8[Tensor, "out columns"],
        scale: Float16[Tensor, "out groups"],
        zero_point: UInt8[Tensor, "out groups"],
        group_size: int,
    ) -> None:
        self.out_features, self.group_size = codes.shape[0], group_size
        # Numba has no float16 on CPUs: the kernel is given the bits.
        self.arrays = tile(codes).numpy(), _tile_scale(scale).view(torch.int16).numpy(), tile(zero_point).numpy()

    def __call__(self, x: Float[Tensor, "n columns"]) -> Float[Tensor, "n out"]:
        packed, scale, zero_point = self.arrays
        blocks = packed.shape[0]
        out = np.empty((x.shape[0], blocks * OUTPUTS), np.float32)
        kernel = _int4_vector if x.shape[0] == 1 else _int4_matmul
        _in_threads(kernel, (_array(x), packed, scale, zero_point, self.group_size, out), blocks, 2 * packed.size)
        result = torch.from_numpy(out)
        return result if result.shape[1] == self.out_features else result[:, : self.out_features]

    def unpack(self) -> tuple[UInt8[Tensor, "out columns"], Float16[Tensor, "out groups"], UInt8[Tensor, "out groups"]]:
        """codes, scale and zero_point as they were given."""
        packed, scale, zero_point = (torch.from_numpy(array) for array in self.arrays)
        rows = scale.view(torch.float16).transpose(1, 2).flatten(0, 1)[: self.out_features].contiguous()
        return untile(packed, self.out_features), rows, untile(zero_point, self.out_features)


def tile(nibbles: UInt8[Tensor, "out columns"]) -> UInt8[Tensor, "blocks columns 32"]:
    """Values 0..15 in the order in which the int4 kernels read them; outputs are filled up with zeros to blocks."""
    padded = torch.nn.functional.pad(nibbles, (0, 0, 0, -nibbles.shape[0] % OUTPUTS))
    low, high = padded.view(-1, 2, OUTPUTS // 2, nibbles.shape[1]).unbind(1)
    return (low | (high << 4)).transpose(1, 2).contiguous()


def untile(packed: UInt8[Tensor, "blocks columns 32"], out_features: int) -> UInt8[Tensor, "out columns"]:
    """The inverse of `tile`."""
    halves = torch.stack((packed & 15, packed >> 4), dim=1)  # [blocks, 2, columns, 32]
    return halves.transpose(2, 3).reshape(-1, packed.shape[1])[:out_features].contiguous()


def _tile_scale(scale: Float16[Tensor, "out groups"]) -> Float16[Tensor, "blocks groups 64"]:
    padded = torch.nn.functional.pad(scale, (0, 0, 0, -scale.shape[0] % OUTPUTS))
    return padded.view(-1, OUTPUTS, scale.shape[1]).transpose(1, 2).contiguous()


def _array(x: Tensor) -> np.ndarray:
    return x.detach().to(torch.float32).contiguous().numpy()


def _in_threads(kernel: Callable[..., None], arrays: tuple, end: int, num_weights: int) -> None:
    """kernel(*arrays, first, last) for 0 .. end, in as many threads as PyTorch would use.

    Threads of our own, and not Numba's: those would compete with PyTorch's OpenMP for the same cores.
    """
    threads = min(torch.get_num_threads(), num_weights // _WEIGHTS_A_THREAD)
    if threads < 2:
        kernel(*arrays, 0, end)
        return
    edges = [end * i // threads for i in range(threads + 1)]
    futures = [_pool(threads).submit(kernel, *arrays, first, last) for first, last in pairwise(edges)]
    for future in futures:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="matmul")


@njit(fastmath=_FAST, nogil=True, cache=True)
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


@njit(fastmath=_FAST, nogil=True, cache=True)
def _unpack_grid(scale_bits, zero_point, scale, zero):  # type: ignore[no-untyped-def]
    """Scales and zero points of one group and block as float32; those of the high nibbles / 16 and * 16."""
    U, f32, i32 = np.uint64, np.float32, np.int32
    half = U(OUTPUTS // 2)
    bits = scale.view(np.int32)
    for j in range(U(OUTPUTS)):
        # The bits of a positive float16, moved into place, are a float32 that is 2**112 times too small.
        bits[j] = i32(scale_bits[j]) << i32(13)
    for j in range(half):
        scale[j], scale[j + half] = scale[j] * f32(2.0**112), scale[j + half] * f32(2.0**108)
        zero[j], zero[j + half] = f32(i32(zero_point[j] & 15)), f32(i32(zero_point[j] & 240))


@njit(fastmath=_FAST, nogil=True, cache=True)
def _int4_vector(x, packed, scale_bits, zero_point, group_size, out, first_block, last_block):  # type: ignore[no-untyped-def]
    """One row of x: the weights go from memory to the sums, nothing in between."""
    U, f32, i32 = np.uint64, np.float32, np.int32
    columns, half = U(x.shape[1]), U(OUTPUTS // 2)
    groups = (columns + U(group_size) - U(1)) // U(group_size)
    group_sum, total = np.empty(OUTPUTS, np.float32), np.empty(OUTPUTS, np.float32)
    scale, zero = np.empty(OUTPUTS, np.float32), np.empty(OUTPUTS, np.float32)
    for block in range(U(first_block), U(last_block)):
        total[:] = f32(0)
        for group in range(groups):
            group_sum[:] = f32(0)  # of x * code within the group
            x_sum = f32(0)  # of x: the zero point's share
            for k in range(group * U(group_size), min(columns, (group + U(1)) * U(group_size)), U(4)):
                x0, x1, x2, x3 = x[U(0), k], x[U(0), k + U(1)], x[U(0), k + U(2)], x[U(0), k + U(3)]
                x_sum += x0 + x1 + x2 + x3
                for j in range(half):
                    b0, b1 = packed[block, k, j], packed[block, k + U(1), j]
                    b2, b3 = packed[block, k + U(2), j], packed[block, k + U(3), j]
                    group_sum[j] += (x0 * f32(i32(b0 & 15)) + x1 * f32(i32(b1 & 15))) + (
                        x2 * f32(i32(b2 & 15)) + x3 * f32(i32(b3 & 15))
                    )
                    group_sum[j + half] += (x0 * f32(i32(b0 & 240)) + x1 * f32(i32(b1 & 240))) + (
                        x2 * f32(i32(b2 & 240)) + x3 * f32(i32(b3 & 240))
                    )
            _unpack_grid(scale_bits[block, group], zero_point[block, group], scale, zero)
            for j in range(U(OUTPUTS)):
                total[j] += scale[j] * (group_sum[j] - zero[j] * x_sum)
        for j in range(U(OUTPUTS)):
            out[U(0), block * U(OUTPUTS) + j] = total[j]


@njit(fastmath=_FAST, nogil=True, cache=True)
def _int4_matmul(x, packed, scale_bits, zero_point, group_size, out, first_block, last_block):  # type: ignore[no-untyped-def]
    """Several rows of x: each 8 inputs' weights are unpacked once for all of them."""
    U, f32, i32 = np.uint64, np.float32, np.int32
    rows, columns, half = U(x.shape[0]), U(x.shape[1]), U(OUTPUTS // 2)
    groups = (columns + U(group_size) - U(1)) // U(group_size)
    weight = np.empty((INPUTS, OUTPUTS), np.float32)
    group_sum, total = np.empty((rows, OUTPUTS), np.float32), np.empty((rows, OUTPUTS), np.float32)
    x_sum = np.empty(rows, np.float32)
    scale, zero = np.empty(OUTPUTS, np.float32), np.empty(OUTPUTS, np.float32)
    for block in range(U(first_block), U(last_block)):
        total[:] = f32(0)
        for group in range(groups):
            group_sum[:] = f32(0)
            x_sum[:] = f32(0)
            for k in range(group * U(group_size), min(columns, (group + U(1)) * U(group_size)), U(INPUTS)):
                for i in range(U(INPUTS)):
                    for j in range(half):
                        byte = packed[block, k + i, j]
                        weight[i, j], weight[i, j + half] = f32(i32(byte & 15)), f32(i32(byte & 240))
                for r in range(rows):
                    x0, x1, x2, x3 = x[r, k], x[r, k + U(1)], x[r, k + U(2)], x[r, k + U(3)]
                    x4, x5, x6, x7 = x[r, k + U(4)], x[r, k + U(5)], x[r, k + U(6)], x[r, k + U(7)]
                    x_sum[r] += x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7
                    for j in range(U(OUTPUTS)):
                        group_sum[r, j] += (
                            x0 * weight[U(0), j] + x1 * weight[U(1), j] + x2 * weight[U(2), j] + x3 * weight[U(3), j]
                        ) + (x4 * weight[U(4), j] + x5 * weight[U(5), j] + x6 * weight[U(6), j] + x7 * weight[U(7), j])
            _unpack_grid(scale_bits[block, group], zero_point[block, group], scale, zero)
            for r in range(rows):
                for j in range(U(OUTPUTS)):
                    total[r, j] += scale[j] * (group_sum[r, j] - zero[j] * x_sum[r])
        for r in range(rows):
            for j in range(U(OUTPUTS)):
                out[r, block * U(OUTPUTS) + j] = total[r, j]
