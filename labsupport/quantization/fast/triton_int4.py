"""Group-wise 4-bit weights times float16 or bfloat16 activations on a GPU, in Triton: for decoding, a few rows of x.

Decoding is limited by reading the weights from memory, so they are read as they are stored, two codes a byte, and
become numbers in registers: weight = scale * (code - zero_point), a scale and a zero point for each row and group. Each
program of the grid computes 16 or more outputs for up to 16 rows of x, group by group along the inputs:

    for each group:  codes [outputs, group] -> product of x and the codes -> * scale, minus scale * zero_point * sum(x)

that is x · (s (c - z))ᵀ = s (x · cᵀ - z Σx): zero point and scale are applied once a group to the product, never to the
weights. PyTorch's own kernel (`Int4Cuda` in int4.py) needs bfloat16 tensor cores; this one runs on a T4, too.
Tillet et al. 2019, "Triton", https://doi.org/10.1145/3315508.3329973.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

ROWS = 16  # of x in one program: the least that a tensor core takes


def int4_matmul(
    x: Float[Tensor, "n in"],
    packed: UInt8[Tensor, "out in/2"],
    scale: Float[Tensor, "out groups"],
    zero_point: UInt8[Tensor, "out groups"],
    group_size: int,
) -> Float[Tensor, "n out"]:
    """x @ (scale * (codes - zero_point)).T in x's dtype, summed in float32.

    packed: codes of neighbouring columns, the first in the low half of a byte (`labsupport.numerics.packing.pack`).

    Raises:
        ValueError: shapes that do not fit, or an odd group_size.
    """
    (n, columns), (outputs, width) = x.shape, packed.shape
    groups = -(-columns // group_size)
    fits = width == -(-columns // 2) and scale.shape == zero_point.shape == (outputs, groups)
    if group_size % 2 or not fits:
        raise ValueError(
            f"packed, scale and zero_point must be [out, {-(-columns // 2)}] and twice [out, {groups}] for x "
            f"{list(x.shape)} and an even group_size; got {list(packed.shape)}, {list(scale.shape)}, "
            f"{list(zero_point.shape)} and group_size = {group_size}"
        )
    out = torch.empty(n, outputs, dtype=x.dtype, device=x.device)
    if out.numel():
        block = 16 if outputs < 4096 else 32  # enough programs to keep every multiprocessor busy
        half = max(16, triton.next_power_of_2(group_size // 2))
        grid = (triton.cdiv(outputs, block), triton.cdiv(n, ROWS))
        _int4_kernel[grid](
            x.contiguous(), packed, scale, zero_point, out, n, columns, outputs, width, groups,
            GROUP=group_size, HALF=half, BLOCK=block, ROWS=ROWS, DOT=_dot_type(x.dtype),
        )  # fmt: skip
    return out


def _dot_type(dtype: torch.dtype) -> tl.dtype:
    """What tensor cores multiply. Triton's interpreter has no products of bfloat16, which float32 holds."""
    if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        return tl.float32
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(dtype, tl.float32)


@triton.jit
def _int4_kernel(
    x, packed, scale, zero_point, out, n, columns, outputs, width, groups,
    GROUP: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, HALF)  # of one group
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for group in range(groups):
        even = group * GROUP + 2 * byte  # the column in the low half of each byte; the next one is in the high half
        inside = (2 * byte < GROUP) & (even < columns)
        odd_inside = (2 * byte < GROUP) & (even + 1 < columns)
        start = x + row[:, None] * columns
        x_even = tl.load(start + even[None, :], (row[:, None] < n) & inside[None, :], 0.0)  # [ROWS, HALF]
        x_odd = tl.load(start + even[None, :] + 1, (row[:, None] < n) & odd_inside[None, :], 0.0)

        place = packed + output[None, :] * width + (even // 2)[:, None]
        codes = tl.load(place, (output[None, :] < outputs) & inside[:, None], 0)  # [HALF, BLOCK]
        low, high = (codes & 15).to(DOT), (codes >> 4).to(DOT)  # 0 .. 15 are exact in any dtype
        product = tl.dot(x_even.to(DOT), low, input_precision="ieee")  # summed in float32
        product += tl.dot(x_odd.to(DOT), high, input_precision="ieee")

        grid = output * groups + group
        s = tl.load(scale + grid, output < outputs, 0.0).to(tl.float32)
        z = tl.load(zero_point + grid, output < outputs, 0).to(tl.float32)
        x_sum = tl.sum(x_even.to(tl.float32), 1) + tl.sum(x_odd.to(tl.float32), 1)
        total += s[None, :] * (product - z[None, :] * x_sum[:, None])
    place = out + row[:, None] * outputs + output[None, :]
    tl.store(place, total.to(out.dtype.element_ty), (row[:, None] < n) & (output[None, :] < outputs))
