"""int8 activations times int8 weights (W8A8) on a GPU, in Triton: one scale a token, one a row of the weight.

Tensor cores multiply int8 and sum in int32, exactly. Both scales are applied once, to the sums, in the same program
that made them: the int32 sums are never written to memory, which `torch._int_mm` with a multiplication after it must
do. The activations come as floats and are quantized first, token by token (`quantize_tokens`).
Dettmers et al. 2022, "LLM.int8()", https://arxiv.org/abs/2208.07339, section 2; Tillet et al. 2019, "Triton".
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int8
from torch import Tensor


def int8_matmul(
    x: Int8[Tensor, "n in"],
    x_scale: Float[Tensor, "n 1"],
    weight: Int8[Tensor, "out in"],
    weight_scale: Float[Tensor, " out"],
    dtype: torch.dtype = torch.float16,
) -> Float[Tensor, "n out"]:
    """(x @ weight.T) * x_scale * weight_scale in ``dtype``; the sums are exact int32.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    (n, columns), outputs = x.shape, len(weight)
    if weight.shape != (outputs, columns) or x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise ValueError(
            f"x and weight must be int8 of shapes [n, in] and [out, in]; got {x.dtype} {list(x.shape)} and "
            f"{weight.dtype} {list(weight.shape)}"
        )
    if x_scale.numel() != n or weight_scale.numel() != outputs:
        raise ValueError(f"x_scale must be {n} numbers and weight_scale {outputs}; got {x_scale.numel()}, "
                         f"{weight_scale.numel()}")  # fmt: skip
    out = torch.empty(n, outputs, dtype=dtype, device=x.device)
    if out.numel():
        rows = 16 if n <= 16 else 64
        grid = (triton.cdiv(n, rows), triton.cdiv(outputs, 64))
        _int8_kernel[grid](x.contiguous(), x_scale, weight.contiguous(), weight_scale, out, n, columns, outputs,
                           ROWS=rows, OUTPUTS=64, STEP=64)  # fmt: skip
    return out


def quantize_tokens(x: Float[Tensor, "n in"]) -> tuple[Int8[Tensor, "n in"], Float[Tensor, "n 1"]]:
    """Symmetric int8 with one scale a token, max|x| / 127: x = codes * scale to within half a step."""
    n, columns = x.shape
    codes, scale = torch.empty(n, columns, dtype=torch.int8, device=x.device), torch.empty(n, 1, device=x.device)
    if n:
        _tokens_kernel[(n,)](x.contiguous(), codes, scale, columns, WIDTH=triton.next_power_of_2(columns))
    return codes, scale


@triton.jit
def _tokens_kernel(x, codes, scale, columns, WIDTH: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, WIDTH)
    place = row * columns + column
    values = tl.load(x + place, column < columns, 0.0).to(tl.float32)
    step = tl.maximum(tl.max(tl.abs(values), 0) / 127, 1.1754944e-38)
    steps = values / step
    down = tl.floor(steps)  # halves go to the even neighbour, as torch.round has it
    above = (steps - down > 0.5) | ((steps - down == 0.5) & (down - 2 * tl.floor(down / 2) == 1))
    tl.store(codes + place, (down + above.to(tl.float32)).to(tl.int8), column < columns)
    tl.store(scale + row, step)


@triton.jit
def _int8_kernel(
    x, x_scale, weight, weight_scale, out, n, columns, outputs,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for start in range(0, columns, STEP):
        column = start + tl.arange(0, STEP)
        left = tl.load(
            x + row[:, None] * columns + column[None, :], (row[:, None] < n) & (column[None, :] < columns), 0
        )
        right = tl.load(
            weight + output[None, :] * columns + column[:, None],
            (output[None, :] < outputs) & (column[:, None] < columns), 0,
        )  # fmt: skip
        sums += tl.dot(left, right, out_dtype=tl.int32)
    by_row = tl.load(x_scale + row, row < n, 0.0).to(tl.float32)
    by_output = tl.load(weight_scale + output, output < outputs, 0.0).to(tl.float32)
    result = sums.to(tl.float32) * by_row[:, None] * by_output[None, :]
    place = out + row[:, None] * outputs + output[None, :]
    tl.store(place, result.to(out.dtype.element_ty), (row[:, None] < n) & (output[None, :] < outputs))
