"""The Hessian of a layer's output error, and the factor of its inverse that GPTQ and SparseGPT walk along.

Both minimize |dW X|² = tr(dW H dWᵀ) with H = 2 XᵀX, the second derivative of that error by any row of the weight."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor


def inverse_cholesky(hessian: Float[Tensor, "n n"], damping: float = 0.0) -> Float[Tensor, "n n"]:
    """Upper U with UᵀU = (hessian + damping · mean(diagonal) · I)⁻¹.

    With both axes reversed, Cholesky gives hessian = R Rᵀ with R upper, and U = R⁻¹: the same U as factoring the
    inverse, without forming it. More damping, with a warning, where that is not positive definite.

    Raises:
        ValueError: even 100 times the mean diagonal does not help.
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
    """By halves: a third of the work of solving for the identity, nearly all of it in matrix products."""
    n = len(matrix)
    if n <= 64:
        return torch.linalg.solve_triangular(matrix, torch.eye(n, dtype=matrix.dtype, device=matrix.device), upper=True)
    half = n // 2
    inverse = torch.zeros_like(matrix)
    inverse[:half, :half] = _inverse_upper(matrix[:half, :half])
    inverse[half:, half:] = _inverse_upper(matrix[half:, half:])
    inverse[:half, half:] = -(inverse[:half, :half] @ matrix[:half, half:]) @ inverse[half:, half:]
    return inverse


class HessianAccumulator:
    """H = 2/n Σ x xᵀ over all tokens seen, in float32 whatever the activations' precision (paper, section 3.1)."""

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.num_tokens = 0
        self._upper = torch.zeros(in_features, in_features, device=device)

    @torch.no_grad()
    def add(self, inputs: Float[Tensor, "*lead in"]) -> None:
        """Take in activations with any leading dimensions; each row of the last one is a token."""
        if inputs.dim() == 0 or inputs.shape[-1] != len(self._upper):
            raise ValueError(f"inputs must have shape [..., {len(self._upper)}], got {list(inputs.shape)}")
        x = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if len(x) == 0:
            return
        before, self.num_tokens = self.num_tokens, self.num_tokens + len(x)
        # Half of a symmetric product is enough: strips from the diagonal rightwards.
        for start in range(0, x.shape[1], 192):
            strip = slice(start, start + 192)
            self._upper[strip, start:].addmm_(
                x[:, strip].t(), x[:, start:], beta=before / self.num_tokens, alpha=2 / self.num_tokens
            )

    @property
    def hessian(self) -> Float[Tensor, "in in"]:
        """A symmetric copy; all zeros before anything was added."""
        return self._upper.triu() + self._upper.triu(1).t()
