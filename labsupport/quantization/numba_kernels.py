"""A 4-bit matmul in Python, compiled by Numba (optional; without Numba, kernels.py takes PyTorch's own kernels).

Reading one token's weights from memory is what a decode step costs, so a 4-bit kernel wins by reading 8 times less
than float32, if unpacking keeps up. What makes LLVM vectorise it:

- the innermost loop runs over 64 *outputs*, side by side in memory: no horizontal sums, no masks, a constant trip count;
- the nibbles of a byte are outputs j and j + 32, so that both halves are contiguous;
- the high nibble is used as it lies, 16 times too large, and its scale is divided by 16 instead: a power of two, exact;
- 8 inputs at a time are unpacked to a tile that stays in the first-level cache and serves every row of the batch.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from numba import njit
from torch import Tensor

OUTPUTS = 64  # outputs a block: 32 bytes
INPUTS = 8  # inputs unpacked at a time
_THREADED_WEIGHTS = 2**20  # below this many weights a block, waking a second thread costs more than it saves


def tile(nibbles: UInt8[Tensor, "out columns"]) -> UInt8[Tensor, "blocks columns 32"]:
    """Values 0..15 in the order in which the kernel reads them; outputs are filled up with zeros to whole blocks."""
    out_features = nibbles.shape[0]
    padded = torch.nn.functional.pad(nibbles, (0, 0, 0, -out_features % OUTPUTS))
    low, high = padded.view(-1, 2, OUTPUTS // 2, nibbles.shape[1]).unbind(1)
    return (low | (high << 4)).transpose(1, 2).contiguous()


def untile(packed: UInt8[Tensor, "blocks columns 32"], out_features: int) -> UInt8[Tensor, "out columns"]:
    """The inverse of `tile`."""
    halves = torch.stack((packed & 15, packed >> 4), dim=1)  # [blocks, 2, columns, 32]
    return halves.transpose(2, 3).reshape(-1, packed.shape[1])[:out_features].contiguous()


def tile_scale(scale: Float16[Tensor, "out groups"]) -> Float16[Tensor, "blocks groups 64"]:
    padded = torch.nn.functional.pad(scale, (0, 0, 0, -scale.shape[0] % OUTPUTS))
    return padded.view(-1, OUTPUTS, scale.shape[1]).transpose(1, 2).contiguous()


def int4_matmul(
    x: Float[Tensor, "n in"],
    packed: UInt8[Tensor, "blocks in 32"],
    scale: Float16[Tensor, "blocks groups 64"],
    zero_point: UInt8[Tensor, "blocks groups 32"],
    group_size: int,
) -> Float[Tensor, "n padded_out"]:
    """x @ (scale * (codes - zero_point)).T in float32. `in` and group_size must be multiples of 8, scales positive."""
    rows, blocks = x.shape[0], packed.shape[0]
    out = np.empty((rows, blocks * OUTPUTS), np.float32)
    arrays = (
        x.detach().float().contiguous().numpy(),
        packed.numpy(),
        scale.view(torch.int16).numpy(),
        zero_point.numpy(),
        group_size,
    )
    threads = min(torch.get_num_threads(), max(1, packed.numel() * 2 // _THREADED_WEIGHTS))
    if threads == 1:
        _int4_matmul(*arrays, out, 0, blocks)
    else:
        # Threads of our own, and not Numba's: those would fight with PyTorch's OpenMP for the same cores.
        edges = [blocks * i // threads for i in range(threads + 1)]
        futures = [
            _pool(threads).submit(_int4_matmul, *arrays, out, a, b) for a, b in zip(edges, edges[1:], strict=False)
        ]
        for future in futures:
            future.result()
    return torch.from_numpy(out)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="int4")


@njit(fastmath={"contract", "reassoc", "nsz"}, nogil=True, cache=True)
def _int4_matmul(x, packed, scale_bits, zero_point, group_size, out, first_block, last_block):  # type: ignore[no-untyped-def]
    # uint64 indices everywhere in the inner loops: signed ones bring a test for negative indices with them.
    U, f32, i32 = np.uint64, np.float32, np.int32
    rows, n_in, half = x.shape[0], x.shape[1], OUTPUTS // 2
    weight = np.empty((INPUTS, OUTPUTS), np.float32)
    group_sum = np.empty((rows, OUTPUTS), np.float32)  # of x * code, within one group
    total = np.empty((rows, OUTPUTS), np.float32)
    x_sum = np.empty(rows, np.float32)
    bits = np.empty(OUTPUTS, np.int32)
    scale, zero = np.empty(OUTPUTS, np.float32), np.empty(OUTPUTS, np.float32)
    for block in range(U(first_block), U(last_block)):
        total[:] = f32(0)
        for group in range(U((n_in + group_size - 1) // group_size)):
            group_sum[:] = f32(0)
            x_sum[:] = f32(0)
            for k in range(U(group) * U(group_size), min(U(n_in), U(group + U(1)) * U(group_size)), U(INPUTS)):
                for i in range(U(INPUTS)):
                    for j in range(U(half)):
                        byte = packed[block, k + i, j]
                        weight[i, j] = f32(i32(byte & 15))
                        weight[i, j + U(half)] = f32(i32(byte & 240))
                for r in range(U(rows)):
                    x0, x1, x2, x3 = x[r, k], x[r, k + U(1)], x[r, k + U(2)], x[r, k + U(3)]
                    x4, x5, x6, x7 = x[r, k + U(4)], x[r, k + U(5)], x[r, k + U(6)], x[r, k + U(7)]
                    x_sum[r] += x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7
                    for j in range(U(OUTPUTS)):
                        group_sum[r, j] += (
                            x0 * weight[U(0), j] + x1 * weight[U(1), j] + x2 * weight[U(2), j] + x3 * weight[U(3), j]
                        ) + (x4 * weight[U(4), j] + x5 * weight[U(5), j] + x6 * weight[U(6), j] + x7 * weight[U(7), j])
            # float16 to float32: the bits moved into place are the number times 2**-112 (positive numbers only).
            for j in range(U(OUTPUTS)):
                bits[j] = i32(scale_bits[block, group, j]) << i32(13)
            as_float = bits.view(np.float32)
            for j in range(U(half)):
                byte = zero_point[block, group, j]
                zero[j], zero[j + U(half)] = f32(i32(byte & 15)), f32(i32(byte & 240))
                scale[j] = as_float[j] * f32(2.0**112)
                scale[j + U(half)] = as_float[j + U(half)] * f32(2.0**108)
            for r in range(U(rows)):
                for j in range(U(OUTPUTS)):
                    total[r, j] += scale[j] * (group_sum[r, j] - zero[j] * x_sum[r])
        for r in range(U(rows)):
            for j in range(U(OUTPUTS)):
                out[r, block * U(OUTPUTS) + j] = total[r, j]
