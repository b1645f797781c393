"""The Hessian of a layer's output error, and the factor of its inverse that GPTQ and SparseGPT walk along.

Both minimize ½‖X dWᵀ‖² = ½ tr(dW H dWᵀ), whose second derivative by any row of the weight is H = XᵀX. The papers leave
out the ½ and have 2 XᵀX: a positive factor in H changes nothing, and neither does the number of tokens below.
The factor is the one of GPTQ (Frantar et al. 2022, arXiv 2210.17323, section 3.3, step 3).
"""

from __future__ import annotations

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.numerics.checks import check_finite
from labsupport.numerics.devices import to_host


class AllZeros(ValueError):
    """A Hessian that says nothing: of no inputs, or of zeros."""


def inverse_cholesky(hessian: Float[Tensor, "n n"], damping: float = 0.0) -> Float[Tensor, "n n"]:
    """Upper U with UᵀU = (hessian + damping · mean(diagonal) · I)⁻¹.

    With both axes reversed, Cholesky gives hessian = R Rᵀ with R upper, and U = R⁻¹: the same U as factoring the
    inverse, without forming it. If the matrix is not positive definite, damping is raised, with a warning.

    Raises:
        ValueError: not positive definite even with 100 times the mean diagonal added.
    """
    mean = hessian.diagonal().mean()
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    flipped = hessian.flip(0, 1)
    tried = damping
    while tried <= 100:
        lower, failed = torch.linalg.cholesky_ex(flipped + tried * mean * identity)
        if not failed:
            if tried > damping:
                warnings.warn(f"hessian is singular under damping={damping}; used {tried}", stacklevel=3)
            return _inverse_upper(lower.flip(0, 1))
        tried = max(10 * tried, 1e-4)
    raise ValueError(f"hessian must be positive semidefinite; no Cholesky factor even with damping {tried / 10:g}")


def _inverse_upper(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """By recursive halves: a third of the work of solving for the identity, nearly all of it in matrix products."""
    n = len(matrix)
    if n <= 64:
        return torch.linalg.solve_triangular(matrix, torch.eye(n, dtype=matrix.dtype, device=matrix.device), upper=True)
    half = n // 2
    inverse = torch.zeros_like(matrix)
    inverse[:half, :half] = _inverse_upper(matrix[:half, :half])
    inverse[half:, half:] = _inverse_upper(matrix[half:, half:])
    inverse[:half, half:] = -(inverse[:half, :half] @ matrix[:half, half:]) @ inverse[half:, half:]
    return inverse


def check_hessian(
    hessian: Float[Tensor, "in in"], weight: Float[Tensor, "out in"], damping: float, zeros: bool = True
) -> Float[Tensor, "in in"]:
    """A copy in float32 (float64 if it came so), or a ValueError: weight and hessian do not fit together, a value is
    not finite, the Hessian is not symmetric, has a negative diagonal or (unless ``zeros`` are allowed) is all zeros, or
    damping is negative."""
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
    given, hessian = hessian, hessian.detach().to(torch.promote_types(hessian.dtype, torch.float32), copy=True)
    finite = torch.isfinite(weight).all() & torch.isfinite(hessian).all()
    found = finite, (hessian - hessian.t()).abs().max(), hessian.abs().max(), hessian.diagonal().min()
    finite, asymmetry, largest, lowest = to_host([value.to(hessian.dtype) for value in found])
    if not finite:
        check_finite(weight, "weight")
        check_finite(given, "hessian")
    if not zeros and largest == 0:
        raise AllZeros("hessian must not be all zeros: it has seen no inputs, or only zeros")
    if asymmetry > 1e-3 * largest:
        raise ValueError(f"hessian must be symmetric, got one that differs from its transpose by up to {asymmetry:.3g}")
    if lowest < 0:
        raise ValueError(f"hessian must have no negative diagonal, got {lowest:.3g}")
    return hessian


class HessianAccumulator:
    """H = 2/n Σ x xᵀ over all tokens seen, in float32 whatever the activations' precision (GPTQ, section 3.1)."""

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.num_tokens = 0
        self._upper = torch.zeros(in_features, in_features, device=device)

    @torch.no_grad()
    def add(self, inputs: Float[Tensor, "*lead in"]) -> None:
        """Add activations with any leading dimensions; the last one holds the features of one token."""
        if inputs.dim() == 0 or inputs.shape[-1] != len(self._upper):
            raise ValueError(f"inputs must have shape [..., {len(self._upper)}], got {list(inputs.shape)}")
        x = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if len(x) == 0:
            return
        before, self.num_tokens = self.num_tokens, self.num_tokens + len(x)
        # Half of a symmetric product is enough: strips from the diagonal to the right.
        for start in range(0, x.shape[1], 192):
            strip = slice(start, start + 192)
            self._upper[strip, start:].addmm_(
                x[:, strip].t(), x[:, start:], beta=before / self.num_tokens, alpha=2 / self.num_tokens
            )

    @property
    def hessian(self) -> Float[Tensor, "in in"]:
        """A symmetric copy; all zeros before anything was added."""
        return self._upper.triu() + self._upper.triu(1).t()
