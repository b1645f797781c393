"""Random weights, logits and labels."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def draw_logits(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits, and labels."""
    labels = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed + 500))
    return 2 * normal(seed, *shape), 2 * normal(seed + 1000, *shape), labels
