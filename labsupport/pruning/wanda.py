"""Wanda: prune by weight times activation, with no retraining and no change to the weights that stay.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695), equation 1: the
score of the weight from input j to output i is

    S_ij = |W_ij| · ‖X_j‖₂        with X_j that input over all calibration tokens,

the norm of what the output would lose. A few inputs of a language model are a hundred times larger than the others,
while their weights need not be: magnitude alone may remove the very weights that matter. Scores are compared within
each output's row (section 3), so that every output keeps the same number of inputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labsupport.numerics.checks import check_finite
from labsupport.pruning.magnitude import check_sparsity, keep_largest
from labsupport.pruning.semi_structured import nm_mask, parse_pattern


@torch.no_grad()
def wanda_mask(
    weight: Float[Tensor, "out in"],
    input_norm: Float[Tensor, " in"],
    sparsity: float = 0.5,
    pattern: str | None = None,
) -> Bool[Tensor, "out in"]:
    """Which weights stay (True). Each row loses exactly ``round(sparsity * in)``, or has n of every m left.

    input_norm: ‖X_j‖₂ of each input, times any factor (`InputNorm` collects it).
    pattern: "n:m", such as "2:4"; ``sparsity`` is then ignored.

    Raises:
        ValueError: shapes that do not fit; values that are not finite; a negative norm; sparsity outside 0..1; a
            pattern whose m does not divide ``in``.
    """
    scores = wanda_scores(weight, input_norm)
    if pattern is not None:
        return nm_mask(scores, *parse_pattern(pattern))
    check_sparsity(sparsity)
    return keep_largest(scores, round(sparsity * weight.shape[1]))


@torch.no_grad()
def wanda_scores(weight: Float[Tensor, "out in"], input_norm: Float[Tensor, " in"]) -> Float[Tensor, "out in"]:
    """|W_ij| · ‖X_j‖₂ in float32."""
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be a floating-point [out, in], got {weight.dtype} {list(weight.shape)}")
    if input_norm.shape != weight.shape[1:] or not input_norm.is_floating_point():
        raise ValueError(
            f"input_norm must be floating point with shape [in] = [{weight.shape[1]}] for weight {list(weight.shape)}, "
            f"got {input_norm.dtype} {list(input_norm.shape)}"
        )
    if not (torch.isfinite(weight).all() & torch.isfinite(input_norm).all() & (input_norm >= 0).all()):
        check_finite(weight, "weight")
        check_finite(input_norm, "input_norm")
        raise ValueError(f"input_norm must not be negative, got {float(input_norm.min()):.3g}")
    return weight.detach().float().abs() * input_norm.float()


class InputNorm:
    """‖X_j‖₂ of each input over all tokens seen, accumulated in float64."""

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.num_tokens = 0
        self._squares = torch.zeros(in_features, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, inputs: Float[Tensor, "*lead in"]) -> None:
        """Add activations with any leading dimensions; the last one holds the features of one token."""
        if inputs.dim() == 0 or inputs.shape[-1] != len(self._squares):
            raise ValueError(f"inputs must have shape [..., {len(self._squares)}], got {list(inputs.shape)}")
        x = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.num_tokens += len(x)
        self._squares += x.square().sum(0)

    @property
    def norm(self) -> Float[Tensor, " in"]:
        return self._squares.sqrt().float()
