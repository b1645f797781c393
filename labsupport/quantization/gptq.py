"""GPTQ: quantize a weight column by column, and let the columns still to come compensate each rounding error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323), algorithm 1. The layer's output error on inputs X is ½‖X dWᵀ‖² = ½ tr(dW H dWᵀ) with H = XᵀX: errors
that cancel under correlated inputs cost nothing. Rounding column j to ŵ_j, the value of its codes, leaves

    err_j = (w_j - ŵ_j) / U_jj,    w_k -= err_j U_jk  for every later column k      (equations 2 and 3)

with U the upper Cholesky factor of the inverse of H (the paper's "H⁻¹" from its section 3.3, step 3, on). ½ err_j² is
what column j adds to the output error for good. Where no inputs correlate (H a multiple of I) nothing moves, and GPTQ
is round-to-nearest.

`gptq_steps` is the algorithm as the paper states it, `gptq_quantize` the same computed faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labsupport.numerics.checks import check_bits
from labsupport.numerics.hessian import check_hessian, inverse_cholesky
from labsupport.quantization.affine import to_groups
from labsupport.quantization.qweight import (
    QuantizedWeight,
    find_scale_zero,
    quantize_to_codes,
    resolve_group_size,
    scale_zero_from_range,
)


@dataclass(frozen=True)
class GPTQStep:
    """What rounding one column did: its quantized values ŵ_j, err_j, and the weight with all later columns moved."""

    column: int
    quantized: Float[Tensor, " out"]
    error: Float[Tensor, " out"]
    weight: Float[Tensor, "out in"]


@torch.no_grad()
def gptq_steps(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    bits: int = 4,
    group_size: int | None = 64,
    symmetric: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
    static_groups: bool | None = None,
) -> Iterator[GPTQStep]:
    """The paper's algorithm 1, one column at a time: the weight of the last step is the quantized weight.

    For the options, and the errors raised, see `gptq_quantize`.
    """
    check_bits(bits)
    W, U, order = _prepare(weight, hessian, act_order, damping)
    group_size = resolve_group_size(group_size, W.shape[1])
    static = act_order if static_groups is None else static_groups
    original = W.clone()
    for i, j in enumerate(order.tolist()):
        if static:
            first = j - j % group_size
            scale, zero_point = find_scale_zero(original[:, first : first + group_size], bits, symmetric)
        elif i % group_size == 0:  # by now all earlier errors have reached this group
            scale, zero_point = find_scale_zero(W[:, order[i : i + group_size]], bits, symmetric)
        rounded = (quantize_to_codes(W[:, j], scale, zero_point, bits) - zero_point) * scale
        err = (W[:, j] - rounded) / U[i, i]
        W[:, order[i:]] -= err[:, None] * U[i, i:]
        W[:, j] = rounded  # which it is already, up to rounding in float32
        yield GPTQStep(j, rounded, err, W.clone())


@torch.no_grad()
def gptq_quantize(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    bits: int = 4,
    group_size: int | None = 64,
    symmetric: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
    block_size: int = 32,
    static_groups: bool | None = None,
) -> QuantizedWeight:
    """Quantize ``weight`` so that the output error on the inputs behind ``hessian`` is small.

    Computes what `gptq_steps` computes, in three ways faster: the weight is transposed, so that a column is contiguous
    in memory; U is divided by its diagonal once, which spares a division per column; and an error is passed on at once
    only within its block of columns, to everything further right in one matrix product per block (the paper's lazy
    batch updates, section 3.3, step 2).

    hessian: XᵀX of the inputs times any factor (`HessianAccumulator` collects it). Neither argument is changed.
    group_size: consecutive columns of a row that share a scale; the last group may be smaller. None: the whole row.
    act_order: take the columns by decreasing diagonal of the Hessian, so that the most active inputs are rounded while
        most columns are left to compensate.
    damping: share of the mean diagonal that is added to the diagonal (section 3.3, step 3).
    block_size: columns between two updates of everything further right. It affects the speed, not the result.
    static_groups: True takes all scales from the given weight, False each from the weight as updated when its first
        column is reached (better without act-order). None: static exactly where act_order is on; then groups remain
        consecutive columns, whereas dynamic groups with act_order need a `group_index` at inference.

    Columns whose input is always 0 (dead) are set to 0, as in the authors' code. A Hessian that stays singular under
    its damping gets ten times as much, with a warning.

    Raises:
        ValueError: bits outside 2..8; shapes that do not fit; a value that is not finite; a Hessian that is not
            symmetric, has a negative diagonal or is all zeros; a negative damping; sizes below 1.
    """
    check_bits(bits)
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a positive integer, got {block_size!r}")
    weight, factor, order = _prepare(weight, hessian, act_order, damping)
    in_features = weight.shape[1]
    group_size = resolve_group_size(group_size, in_features)
    static = act_order if static_groups is None else static_groups

    # Row j: how far each later column moves for a unit of w_j - ŵ_j.
    factor_over_diagonal = factor / factor.diagonal()[:, None]
    columns = weight[:, order].t().contiguous()  # [in, out]
    codes = torch.empty_like(columns)
    group_of = [column // group_size for column in (order.tolist() if static else range(in_features))]
    groups = math.ceil(in_features / group_size)
    scale, zero_point = columns.new_empty(groups, len(weight)), columns.new_empty(groups, len(weight))
    if static:
        static_scale, static_zero_point = _grid(to_groups(weight, group_size), bits, symmetric)
        scale.copy_(static_scale.t()), zero_point.copy_(static_zero_point.t())

    for start, stop in _blocks(in_features, block_size, None if static else group_size):
        if not static and start % group_size == 0:
            group = columns[start : start + group_size].t()
            scale[start // group_size], zero_point[start // group_size] = _grid(group, bits, symmetric)
        block = slice(start, stop)
        errors = _quantize_block(
            columns[block], codes[block], factor_over_diagonal[block, block], scale, zero_point,
            group_of[block], bits,
        )  # fmt: skip
        columns[stop:].addmm_(factor_over_diagonal[block, stop:].t(), errors, alpha=-1)

    inverse = order.argsort()
    codes = codes[inverse].t().to(torch.uint8)
    group_index = inverse // group_size if act_order and not static else None
    return QuantizedWeight.from_codes(codes, scale.t(), zero_point.t().int(), bits, group_size, group_index)


def _grid(
    group: Float[Tensor, "*lead size"], bits: int, symmetric: bool
) -> tuple[Float[Tensor, "*lead"], Int[Tensor, "*lead"]]:
    """`find_scale_zero` without a look at the values, which are checked before the first and after the last column."""
    return scale_zero_from_range(group.amin(-1), group.amax(-1), bits, symmetric)


def _quantize_block(
    columns: Float[Tensor, "block out"], codes: Float[Tensor, "block out"],
    factor_over_diagonal: Float[Tensor, "block block"], scale: Float[Tensor, "groups out"],
    zero_point: Float[Tensor, "groups out"], group_of: list[int], bits: int,
) -> Float[Tensor, "block out"]:  # fmt: skip
    """Codes of one block of columns, each error passed on within the block; returns the errors w_j - ŵ_j."""
    errors = torch.empty_like(columns)
    steps = zip(group_of, columns, codes, errors, strict=True)
    for j, (group, column, code, error) in enumerate(steps):
        s, z = scale[group], zero_point[group]
        torch.div(column, s, out=code).round_().add_(z).clamp_(0, 2**bits - 1)
        torch.sub(code, z, out=error).mul_(s)
        torch.sub(column, error, out=error)
        columns[j + 1 :].addr_(factor_over_diagonal[j, j + 1 :], error, alpha=-1)
    return errors


def _blocks(in_features: int, block_size: int, group_size: int | None) -> Iterator[tuple[int, int]]:
    """Blocks of lazy updates. With dynamic groups a block never runs past the end of a group: the next group's scale
    must see every error made before it, and errors leave a block only at its end."""
    for group_start in range(0, in_features, group_size or in_features):
        group_stop = min(group_start + (group_size or in_features), in_features)
        for start in range(group_start, group_stop, block_size):
            yield start, min(start + block_size, group_stop)


def _prepare(
    weight: Tensor, hessian: Tensor, act_order: bool, damping: float
) -> tuple[Float[Tensor, "out in"], Float[Tensor, "in in"], Int[Tensor, " in"]]:
    """A copy of the weight without dead columns, U, and the order of the columns, which is that of U's rows."""
    hessian = check_hessian(hessian, weight, damping, zeros=False)
    weight = weight.detach().to(torch.float32, copy=True)
    dead = hessian.diagonal() == 0
    weight[:, dead] = 0
    hessian.diagonal()[dead] = 1  # before damping, or 1 % of the mean of mostly zeros would be no damping at all
    order = torch.arange(len(hessian), device=weight.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    return weight, inverse_cholesky(hessian, damping).float(), order
