"""SparseGPT: prune a weight column by column, and let the columns still to come make up for each weight that goes.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (arXiv 2301.00774),
algorithm 1. It is GPTQ (chapter 1) with "set to zero" in the place of "round": with H = XᵀX of the layer's inputs and U
the upper Cholesky factor of its inverse, zeroing w_j costs w_j² / U_jj² of output error for good, and

    w_k -= w_j / U_jj · U_jk  for every later column k      (optimal brain surgeon's update, equation 3)

is the best that the later columns can do about it. Rows share H, so rows with different masks still share U: that is
what makes it fast. Which weights go is decided for 128 columns at a time, or for the m columns of an N:M group, when
they are reached: all earlier errors have changed them by then (adaptive mask selection).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Chapter 1's factor, not a second one: quantization knows nothing of pruning, so imports still point one way.
from labsupport.numerics.checks import check_finite
from labsupport.numerics.hessian import inverse_cholesky
from labsupport.pruning.magnitude import check_sparsity, keep_largest
from labsupport.pruning.semi_structured import check_nm, parse_pattern

LAZY_COLUMNS = 64  # between two updates of everything further right: changes the speed, not the result


@torch.no_grad()
def sparsegpt_prune(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    sparsity: float = 0.5,
    pattern: str | None = None,
    damping: float = 0.01,
    block_size: int = 128,
) -> Float[Tensor, "out in"]:
    """A pruned weight whose output on the inputs behind ``hessian`` is close to that of ``weight``, in float32.

    hessian: XᵀX of the inputs times any factor (`labsupport.quantization.gptq.HessianAccumulator` collects it). Neither
        argument is changed.
    sparsity: ``round(sparsity * out * in)`` weights are set to 0; each block of columns loses its share of
        them, its rows differing in how many.
    pattern: "n:m", such as "2:4": n of every m neighbours of a row stay, and neither sparsity nor block_size is read.
    damping: share of the mean diagonal of the Hessian that is added to the diagonal.
    block_size: columns whose mask is chosen together (the paper's B_s).

    Inputs that were always 0 (dead) cost nothing: their weights go first, smallest first. A Hessian of zeros prunes by
    magnitude. One that stays singular under its damping gets ten times as much, and a warning.

    Raises:
        ValueError: shapes that do not fit; values that are not finite; a Hessian that is not symmetric or has a
            negative diagonal; sparsity outside 0..1; a pattern whose m does not divide ``in``; a damping below 0; a
            block_size below 1.
    """
    return sparsegpt_prune_together([weight], hessian, sparsity, pattern, damping, block_size)[0]


@torch.no_grad()
def sparsegpt_prune_together(
    weights: Sequence[Float[Tensor, "out in"]],
    hessian: Float[Tensor, "in in"],
    sparsity: float = 0.5,
    pattern: str | None = None,
    damping: float = 0.01,
    block_size: int = 128,
) -> list[Float[Tensor, "out in"]]:
    """`sparsegpt_prune` of each weight that reads the same inputs (q, k and v; gate and up): one factor, one walk.

    Each weight has its own mask and its own number of zeros, as if it were alone.
    """
    n_of_m = parse_pattern(pattern) if pattern is not None else None
    _check(weights, hessian, sparsity, n_of_m, damping, block_size)
    rows, in_features = [len(weight) for weight in weights], weights[0].shape[1]
    hessian = hessian.detach().to(torch.promote_types(hessian.dtype, torch.float32), copy=True)
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1  # before damping, or a share of the mean of mostly zeros would be no damping at all
    factor = inverse_cholesky(hessian, damping).float()
    answer = factor / factor.diagonal()[:, None]  # row j: how far later columns move where column j loses a weight of 1
    sensitivity = factor.diagonal().reciprocal()[:, None]

    columns = torch.cat([weight.detach().float().t() for weight in weights], dim=1)  # [in, out]: a column is contiguous
    width = n_of_m[1] if n_of_m else block_size
    for start, stop in _lazy_blocks(in_features, width):
        errors = torch.empty_like(columns[start:stop])
        for j in range(start, stop):
            if j % width == 0:  # every earlier error has reached these columns by now
                end = min(j + width, in_features)
                scores = _scores(columns[j:end], sensitivity[j:end], dead[j:end])
                if n_of_m:
                    kept = keep_largest(scores.t(), n_of_m[1] - n_of_m[0]).t()
                else:
                    kept = torch.cat([_keep_share(part, j, end, sparsity) for part in scores.split(rows, 1)], dim=1)
                goes = (~kept).float()
            error = torch.mul(columns[j], goes[j % width], out=errors[j - start])
            columns[j + 1 : stop].addr_(answer[j, j + 1 : stop], error, alpha=-1)
        columns[start:stop] -= errors
        columns[stop:].addmm_(answer[start:stop, stop:].t(), errors, alpha=-1)
    return [part.t().contiguous() for part in columns.split(rows, 1)]


def _keep_share(scores: Float[Tensor, "block out"], start: int, end: int, sparsity: float) -> Bool[Tensor, "block out"]:
    """Of columns start..end; shares are rounded so that they add up to the weight's exact number of zeros."""
    num_pruned = round(sparsity * scores.shape[1] * end) - round(sparsity * scores.shape[1] * start)
    return keep_largest(scores.flatten(), num_pruned).view_as(scores)


def _scores(
    columns: Float[Tensor, "block out"], sensitivity: Float[Tensor, "block 1"], dead: Bool[Tensor, " block"]
) -> Float[Tensor, "block out"]:
    """w² / U_jj², what each weight's end would add to the output error; below them all, dead inputs by magnitude."""
    scores = (columns * sensitivity).square_()
    if dead.any():
        scores[dead] = -1 / (1 + columns[dead].abs())
    return scores


def _lazy_blocks(in_features: int, width: int) -> Iterator[tuple[int, int]]:
    """Blocks of about LAZY_COLUMNS that hold whole groups of ``width``, or lie within one."""
    step = max(1, LAZY_COLUMNS // width) * width
    for outer in range(0, in_features, step):
        outer_stop = min(outer + step, in_features)
        inner = LAZY_COLUMNS if width > LAZY_COLUMNS else step
        for start in range(outer, outer_stop, inner):
            yield start, min(start + inner, outer_stop)


def _check(
    weights: Sequence[Tensor], hessian: Tensor, sparsity: float, n_of_m: tuple[int, int] | None, damping: float,
    block_size: int,
) -> None:  # fmt: skip
    for weight in weights:
        if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
            given = f"{weight.dtype} {list(weight.shape)}"
            raise ValueError(f"weight must be a floating-point [out, in] with elements, got {given}")
        wanted = [weight.shape[1], weight.shape[1]]
        if list(hessian.shape) != wanted or not hessian.is_floating_point():
            raise ValueError(
                f"hessian must be floating point of shape [in, in] = {wanted} for weight {list(weight.shape)}, "
                f"got {hessian.dtype} {list(hessian.shape)}"
            )
        check_finite(weight, "weight")
        if n_of_m is not None:
            check_nm(*n_of_m, weight.shape)
    check_finite(hessian, "hessian")
    check_sparsity(sparsity)
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be a finite number of at least 0, got {damping}")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a positive integer, got {block_size!r}")
    if hessian.diagonal().min() < 0:
        raise ValueError(f"hessian must have no negative diagonal, got {float(hessian.diagonal().min()):.3g}")
    asymmetry, largest = float((hessian - hessian.t()).abs().max()), float(hessian.abs().max())
    if asymmetry > 1e-3 * largest:
        raise ValueError(f"hessian must be symmetric, got one that differs from its transpose by up to {asymmetry:.3g}")
