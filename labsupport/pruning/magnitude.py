"""Magnitude pruning: the weights nearest to zero go, exactly as many as requested.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks" (arXiv 1506.02626), in two forms:
each layer loses the same share (`magnitude_mask`), or one threshold applies to all layers, which then lose different
shares (`global_magnitude_masks`).

A mask is bool, True where a weight stays. It is made from a rank, not from a threshold alone: weights on a coarse grid
tie by the thousands, and a threshold would take all of the tied ones or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labsupport.numerics.checks import check_finite


@torch.no_grad()
def magnitude_mask(weight: Float[Tensor, "*shape"], sparsity: float) -> Bool[Tensor, "*shape"]:
    """Which weights stay (True): all but the ``round(sparsity * n)`` of smallest magnitude, n = weight.numel().

    sparsity: share of zeros, 0 (keep all) to 1 (keep none); Python's ``round`` takes halves to the even neighbour.

    Among equal magnitudes the first in memory order goes first, so the same weight always gives the same mask.

    Raises:
        ValueError: sparsity outside 0..1; weight not floating point or not finite.
    """
    check_sparsity(sparsity)
    scores = _magnitude(weight, "weight")
    return keep_largest(scores.flatten(), round(sparsity * scores.numel())).view(weight.shape)


@torch.no_grad()
def global_magnitude_masks(
    named_weights: Mapping[str, Float[Tensor, "*shape"]] | Iterable[tuple[str, Float[Tensor, "*shape"]]],
    sparsity: float,
) -> dict[str, Bool[Tensor, "*shape"]]:
    """A mask for each weight, by one ranking of all of them: ``round(sparsity * n)`` zeros, n over the whole set.

    named_weights: a dict or pairs such as ``model.named_parameters()`` gives.

    Layers with small weights lose more than others, in language models far more: a global rank suits networks whose
    layers have weights on the same scale, as when trained from a common initialization.

    Raises:
        ValueError: sparsity outside 0..1; a name given twice; a weight not floating point or not finite.
    """
    check_sparsity(sparsity)
    pairs = list(named_weights.items() if isinstance(named_weights, Mapping) else named_weights)
    weights = dict(pairs)
    if len(weights) < len(pairs):
        raise ValueError(f"named_weights must have different names, got {[name for name, _ in pairs]}")
    if not weights:
        return {}
    scores = torch.cat([_magnitude(weight, name).flatten() for name, weight in weights.items()])
    kept = keep_largest(scores, round(sparsity * len(scores))).split([weight.numel() for weight in weights.values()])
    return {name: mask.view(weight.shape) for (name, weight), mask in zip(weights.items(), kept, strict=True)}


def keep_largest(scores: Float[Tensor, "*rows n"], num_pruned: int) -> Bool[Tensor, "*rows n"]:
    """False at exactly the ``num_pruned`` smallest scores of each row, the first of equal ones first.

    Selection (no sort) finds the threshold; ties at it are counted only if there are any (on a GPU always: to ask would
    take longer than to count).
    """
    if num_pruned == 0 or scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(num_pruned, dim=-1, keepdim=True).values
    kept = scores > threshold
    if scores.device.type == "cpu" and int(kept.sum()) == kept.numel() // scores.shape[-1] * (
        scores.shape[-1] - num_pruned
    ):
        return kept
    tied = scores == threshold
    num_tied_pruned = num_pruned - (scores < threshold).sum(-1, keepdim=True)
    return kept | (tied & (tied.cumsum(-1, dtype=torch.int32) > num_tied_pruned))


def check_sparsity(sparsity: float) -> None:
    """ValueError unless ``sparsity`` is a number from 0 to 1."""
    number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not number or not math.isfinite(sparsity) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be a number from 0 (keep all) to 1 (keep none), got {sparsity!r}")


def achieved_sparsity(*weights: Tensor) -> float:
    """Share of exact zeros among all elements, counted: what a report should state, whatever the target was."""
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def _magnitude(weight: Tensor, name: str) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        given = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{name} must be a floating-point tensor, got {given}")
    check_finite(weight, name)
    return weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32).abs()
