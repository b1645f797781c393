"""GPTQ: quantize a weight column by column, and let the columns still to come make up for each rounding error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323), algorithm 1. The layer's output error on inputs X is tr(dW H dWᵀ) with H = 2 XᵀX: errors that
cancel under correlated inputs cost nothing. Rounding column j to q_j leaves

    e_j = (w_j - q_j) / U_jj,    w_k -= e_j U_jk  for every later column k      (equations 2 and 3)

with U the upper Cholesky factor of the inverse of H; e_j² is what column j adds to the output error for good.
Where no inputs correlate (H a multiple of I) nothing moves, and GPTQ is round-to-nearest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.numerics.checks import check_bits, check_finite
from labsupport.numerics.hessian import inverse_cholesky
from labsupport.quantization.affine import to_groups
from labsupport.quantization.qweight import QuantizedWeight, find_scale_zero, quantize_to_codes, resolve_group_size


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

    hessian: XᵀX of the inputs times any factor (`HessianAccumulator` collects it). Neither argument is changed.
    group_size: consecutive columns of a row that share a scale; the last group may be smaller. None: the whole row.
    act_order: take columns by falling diagonal of the Hessian, so that the busiest inputs are rounded while the most
        columns are left to compensate.
    damping: share of the mean diagonal that is added to the diagonal (section 3.3, step 3).
    block_size: columns between two updates of everything further right. Changes the speed, not the result.
    static_groups: True takes all scales from the given weight, False each from the weight as updated when its first
        column is reached (better without act-order). None: static exactly where act_order is on; then groups stay
        consecutive columns, where dynamic groups with act_order need a `group_index` at inference.

    Columns whose input is always 0 (dead) are set to 0, as the authors do. A Hessian that stays singular under its
    damping gets ten times as much, and a warning.

    Raises:
        ValueError: bits outside 2..8; shapes that do not fit; a value that is not finite; a Hessian that is not
            symmetric, has a negative diagonal or is all zeros; a damping below 0; sizes below 1.
    """
    check_bits(bits)
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a positive integer, got {block_size!r}")
    weight, hessian = _checked(weight, hessian, damping)
    in_features = weight.shape[1]
    group_size = resolve_group_size(group_size, in_features)
    static = act_order if static_groups is None else static_groups

    dead = hessian.diagonal() == 0
    weight[:, dead] = 0
    hessian.diagonal()[dead] = 1  # before damping, or 1 % of the mean of mostly zeros would be no damping at all
    straight = torch.arange(in_features, device=weight.device)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else straight
    factor = inverse_cholesky(hessian[order][:, order], damping).float()
    answer = factor / factor.diagonal()[:, None]  # row j: how far each later column moves for a unit error of column j

    columns = weight[:, order].t().contiguous()  # [in, out]: one weight column is one contiguous row
    codes = torch.empty_like(columns)
    group_of = (order if static else straight) // group_size
    groups = math.ceil(in_features / group_size)
    scale, zero_point = columns.new_empty(groups, len(weight)), columns.new_empty(groups, len(weight))
    if static:
        static_scale, static_zero_point = find_scale_zero(to_groups(weight, group_size), bits, symmetric)
        scale.copy_(static_scale.t()), zero_point.copy_(static_zero_point.t())

    for start, stop in _blocks(in_features, block_size, None if static else group_size):
        if not static and start % group_size == 0:  # all earlier errors have reached this group by now
            group = columns[start : start + group_size].t()
            scale[start // group_size], zero_point[start // group_size] = find_scale_zero(group, bits, symmetric)
        block = slice(start, stop)
        groups_here = group_of[block].tolist()
        errors = _quantize_block(
            columns[block], codes[block], answer[block, block], scale, zero_point, groups_here, bits
        )
        columns[stop:].addmm_(answer[block, stop:].t(), errors, alpha=-1)

    inverse = order.argsort()
    codes = codes[inverse].t().to(torch.uint8)
    group_index = group_of[inverse] if act_order and not static else None
    return QuantizedWeight.from_codes(codes, scale.t(), zero_point.t().int(), bits, group_size, group_index)


def _quantize_block(
    columns: Float[Tensor, "block out"], codes: Float[Tensor, "block out"], answer: Float[Tensor, "block block"],
    scale: Float[Tensor, "groups out"], zero_point: Float[Tensor, "groups out"], group_of: list[int], bits: int,
) -> Float[Tensor, "block out"]:  # fmt: skip
    """Codes of one block of columns, with each error passed on within the block; returns the errors w_j - q_j."""
    errors = torch.empty_like(columns)
    steps = zip(group_of, columns, codes, errors, strict=True)
    for j, (group, column, code, error) in enumerate(steps):
        s, z = scale[group], zero_point[group]
        torch.div(column, s, out=code).round_().add_(z).clamp_(0, 2**bits - 1)
        torch.sub(code, z, out=error).mul_(s)
        torch.sub(column, error, out=error)
        columns[j + 1 :].addr_(answer[j, j + 1 :], error, alpha=-1)
    return errors


@dataclass(frozen=True)
class GPTQStep:
    """What rounding one column did: its code's value, e_j, and the weight with all later columns moved."""

    column: int
    quantized: Float[Tensor, " out"]
    error: Float[Tensor, " out"]
    weight: Float[Tensor, "out in"]


@torch.no_grad()
def gptq_steps(
    weight: Float[Tensor, "out in"], hessian: Float[Tensor, "in in"], bits: int = 4, group_size: int | None = 64,
    symmetric: bool = False, damping: float = 0.01,
) -> Iterator[GPTQStep]:  # fmt: skip
    """`gptq_quantize` as the paper's formula reads: one column at a time, no blocks, each step to look at.

    The last step's weight is the quantized weight.
    """
    check_bits(bits)
    weight, hessian = _checked(weight, hessian, damping)
    dead = hessian.diagonal() == 0
    weight[:, dead] = 0
    hessian.diagonal()[dead] = 1
    factor = inverse_cholesky(hessian, damping)
    group_size = resolve_group_size(group_size, weight.shape[1])
    for j in range(weight.shape[1]):
        if j % group_size == 0:
            scale, zero_point = find_scale_zero(weight[:, j : j + group_size], bits, symmetric)
        quantized = (quantize_to_codes(weight[:, j], scale, zero_point, bits) - zero_point) * scale
        error = (weight[:, j] - quantized) / factor[j, j]
        weight = weight.clone()
        weight[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
        weight[:, j] = quantized
        yield GPTQStep(j, quantized, error, weight)


def _blocks(in_features: int, block_size: int, group_size: int | None) -> Iterator[tuple[int, int]]:
    """Blocks of lazy updates. With dynamic groups a block never runs past the end of a group: the next group's scale
    must see every error made before it, and errors leave a block only at its end."""
    for group_start in range(0, in_features, group_size or in_features):
        group_stop = min(group_start + (group_size or in_features), in_features)
        for start in range(group_start, group_stop, block_size):
            yield start, min(start + block_size, group_stop)


def _checked(weight: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Copies in float32 (the Hessian in float64 if it came so), or a ValueError that says what is wrong."""
    if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(
            f"weight must be a floating-point [out, in] with elements, got {weight.dtype} {list(weight.shape)}"
        )
    in_features = weight.shape[1]
    if hessian.shape != (in_features, in_features) or not hessian.is_floating_point():
        raise ValueError(
            f"hessian must be floating point of shape [in, in] = [{in_features}, {in_features}] for weight "
            f"{list(weight.shape)}, got {hessian.dtype} {list(hessian.shape)}"
        )
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be a finite number of at least 0, got {damping}")
    check_finite(weight, "weight")
    check_finite(hessian, "hessian")
    hessian = hessian.detach().to(torch.float64 if hessian.dtype == torch.float64 else torch.float32, copy=True)
    largest = hessian.abs().max()
    if largest == 0:
        raise ValueError("hessian must not be all zeros: no inputs went into it, or only zeros")
    asymmetry = float((hessian - hessian.t()).abs().max() / largest)
    if asymmetry > 1e-3:
        raise ValueError(f"hessian must be symmetric; differs from its transpose by {asymmetry:.2g} of its maximum")
    if hessian.diagonal().min() < 0:
        raise ValueError(f"hessian must have no negative diagonal, got {float(hessian.diagonal().min()):.3g}")
    return weight.detach().to(torch.float32, copy=True), hessian
