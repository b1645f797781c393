"""Weights, and inputs that correlate."""

from __future__ import annotations

import torch
from torch import Tensor


def correlated(seed: int, out: int, columns: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, columns], inputs [rows, columns], and the true covariance of such inputs.

    The first half of the inputs comes from one source, the second from another, each with a spectrum that decreases as
    k^-2.5: an answer that reads only a part of the rows knows only one of them.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = normal(out, columns)
    sources = [
        3
        * torch.arange(1, columns + 1, dtype=torch.float64)[:, None] ** -1.25
        * torch.linalg.qr(normal(columns, columns))[0]
        for _ in range(2)
    ]
    inputs = torch.cat([normal(rows // 2, columns) @ mix for mix in sources])
    covariance = torch.stack([mix.T @ mix for mix in sources]).mean(0)
    return weight.float(), inputs.float(), covariance


def exact_inputs(hessian: Tensor) -> Tensor:
    """Inputs whose inputs.T @ inputs is ``hessian`` times a factor, with no sampling noise."""
    lower = torch.linalg.cholesky(hessian)
    return torch.cat([lower.T, -lower.T]).float()
