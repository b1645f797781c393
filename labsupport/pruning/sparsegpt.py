"""SparseGPT: prune a weight column by column, and let the columns still to come compensate for each weight removed.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (arXiv 2301.00774),
algorithm 1. It is GPTQ (chapter 1) with "set to zero" in place of "round": with H = XᵀX of the layer's inputs and U the
upper Cholesky factor of its inverse, zeroing w_j adds w_j² / U_jj² to the output error for good, and

    err_j = w_j / U_jj,    w_k -= err_j U_jk  for every later column k      (optimal brain surgeon, equation 3)

is the best that the later columns can do about it. Rows share H, so rows with different masks still share U: that is
what makes it fast. Which weights go is decided for 128 columns at a time, or for the m columns of an N:M group, when
they are reached: by then all earlier errors have changed them (adaptive mask selection, section 3.2).

`sparsegpt_by_columns` is the algorithm as the paper states it, `sparsegpt_prune` the same computed faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labsupport.numerics.hessian import check_hessian, inverse_cholesky
from labsupport.pruning.magnitude import check_sparsity, keep_largest
from labsupport.pruning.semi_structured import check_nm, parse_pattern

LAZY_COLUMNS = 64  # between two updates of everything further right: affects the speed, not the result


@torch.no_grad()
def sparsegpt_by_columns(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    sparsity: float = 0.5,
    pattern: str | None = None,
    damping: float = 0.01,
    block_size: int = 128,
) -> Float[Tensor, "out in"]:
    """The paper's algorithm 1, one column at a time. For the options, and the errors raised, see `sparsegpt_prune`."""
    n_of_m = parse_pattern(pattern) if pattern is not None else None
    U, dead = _prepare([weight], hessian, sparsity, n_of_m, damping, block_size)
    W = weight.detach().to(torch.float32, copy=True)
    rows, in_features = W.shape
    width = n_of_m[1] if n_of_m else block_size
    for j in range(in_features):
        if j % width == 0:  # choose the mask M of the next columns
            end = min(j + width, in_features)
            cost = _cost(W[:, j:end].t(), U.diagonal()[j:end], _part(dead, j, end))  # [columns, out]
            if n_of_m:
                M = keep_largest(cost.t(), n_of_m[1] - n_of_m[0])
            else:
                # Shares are rounded so that they add up to the exact number of zeros.
                num_pruned = round(sparsity * rows * end) - round(sparsity * rows * j)
                M = keep_largest(cost.flatten(), num_pruned).view_as(cost).t()
        err = W[:, j] * ~M[:, j % width] / U[j, j]
        W[:, j:] -= err[:, None] * U[j, j:]
        W[:, j] *= M[:, j % width]  # exactly zero, not up to rounding in float32
    return W


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

    hessian: XᵀX of the inputs times any factor (`labsupport.numerics.hessian.HessianAccumulator` collects it). Neither
        argument is changed.
    sparsity: ``round(sparsity * out * in)`` weights are set to 0; each block of columns loses its share of
        them, its rows differing in how many.
    pattern: "n:m", such as "2:4": n of every m neighbours in a row stay; sparsity and block_size are then ignored.
    damping: share of the mean diagonal of the Hessian that is added to the diagonal.
    block_size: columns whose mask is chosen together (the paper's B_s).

    Inputs that were always 0 (dead) cost nothing: their weights go first, smallest first. A Hessian of zeros prunes by
    magnitude. One that stays singular under its damping gets ten times as much, with a warning.

    Raises:
        ValueError: shapes that do not fit; values that are not finite; a Hessian that is not symmetric or has a
            negative diagonal; sparsity outside 0..1; a pattern whose m does not divide ``in``; a negative damping; a
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
    """`sparsegpt_prune` of all weights that read the same inputs (q, k and v; gate and up), in one pass.

    Each weight has its own mask and its own number of zeros, as if it were alone.

    Computes what `sparsegpt_by_columns` computes, in four ways faster: the weights are transposed, so that a column is
    contiguous in memory; U is divided by its diagonal once, which spares a division per column; an error is passed on
    at once only within a block of LAZY_COLUMNS, to everything further right in one matrix product per block; and
    weights that share a Hessian share its factor and the pass over the columns.
    """
    n_of_m = parse_pattern(pattern) if pattern is not None else None
    factor, dead = _prepare(weights, hessian, sparsity, n_of_m, damping, block_size)
    rows, in_features = [len(weight) for weight in weights], weights[0].shape[1]
    diagonal = factor.diagonal()
    # Row j: how far each later column moves where column j loses a weight of 1.
    factor_over_diagonal = factor / diagonal[:, None]

    columns = torch.cat([weight.detach().float().t() for weight in weights], dim=1)  # [in, out]
    width = n_of_m[1] if n_of_m else block_size
    for start, stop in _lazy_blocks(in_features, width):
        errors = torch.empty_like(columns[start:stop])
        for j in range(start, stop):
            if j % width == 0:
                end = min(j + width, in_features)
                cost = _cost(columns[j:end], diagonal[j:end], _part(dead, j, end))
                if n_of_m:
                    kept = keep_largest(cost.t(), n_of_m[1] - n_of_m[0]).t()
                else:
                    kept = torch.cat([_keep_share(part, j, end, sparsity) for part in cost.split(rows, 1)], dim=1)
                pruned = (~kept).float()
            error = torch.mul(columns[j], pruned[j % width], out=errors[j - start])
            columns[j + 1 : stop].addr_(factor_over_diagonal[j, j + 1 : stop], error, alpha=-1)
        columns[start:stop] -= errors
        columns[stop:].addmm_(factor_over_diagonal[start:stop, stop:].t(), errors, alpha=-1)
    return [part.t().contiguous() for part in columns.split(rows, 1)]


def _keep_share(cost: Float[Tensor, "block out"], start: int, end: int, sparsity: float) -> Bool[Tensor, "block out"]:
    """The mask of columns start..end; shares are rounded so that they add up to the weight's exact number of zeros."""
    num_pruned = round(sparsity * cost.shape[1] * end) - round(sparsity * cost.shape[1] * start)
    return keep_largest(cost.flatten(), num_pruned).view_as(cost)


def _part(dead: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if dead is None else dead[start:end]


def _cost(
    columns: Float[Tensor, "block out"], diagonal: Float[Tensor, " block"], dead: Bool[Tensor, " block"] | None
) -> Float[Tensor, "block out"]:
    """w² / U_jj², what zeroing each weight would add to the output error; weights of dead inputs rank below all others,
    by magnitude."""
    cost = (columns * diagonal.reciprocal()[:, None]).square_()
    if dead is not None:
        cost[dead] = -1 / (1 + columns[dead].abs())
    return cost


def _lazy_blocks(in_features: int, width: int) -> Iterator[tuple[int, int]]:
    """Blocks of about LAZY_COLUMNS that hold whole groups of ``width``, or lie within one."""
    step = max(1, LAZY_COLUMNS // width) * width
    for outer in range(0, in_features, step):
        outer_stop = min(outer + step, in_features)
        inner = LAZY_COLUMNS if width > LAZY_COLUMNS else step
        for start in range(outer, outer_stop, inner):
            yield start, min(start + inner, outer_stop)


def _prepare(
    weights: Sequence[Tensor], hessian: Tensor, sparsity: float, n_of_m: tuple[int, int] | None, damping: float,
    block_size: int,
) -> tuple[Float[Tensor, "in in"], Bool[Tensor, " in"] | None]:  # fmt: skip
    """Check all arguments; U, and which inputs are dead (None: none is)."""
    for weight in weights:
        checked = check_hessian(hessian, weight, damping)
        if n_of_m is not None:
            check_nm(*n_of_m, weight.shape)
    check_sparsity(sparsity)
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a positive integer, got {block_size!r}")
    dead = checked.diagonal() == 0
    checked.diagonal()[dead] = 1  # before damping, or a share of the mean of mostly zeros would be no damping at all
    return inverse_cholesky(checked, damping).float(), dead if dead.any() else None
