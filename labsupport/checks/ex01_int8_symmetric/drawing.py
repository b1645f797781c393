"""Random tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]


def with_both_signs(x: Tensor) -> Tensor:
    """The same magnitudes with signs that alternate: every slice of two or more has both."""
    places = torch.stack(torch.meshgrid(*map(torch.arange, x.shape), indexing="ij")).sum(0)
    return x.abs() * (1 - 2 * (places % 2))
