"""A weight and activations for the pictures of chapter 1."""

from __future__ import annotations

import pytest
import torch

OUT, IN, TOKENS = 24, 48, 400


@pytest.fixture(scope="module")
def weight():
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 2, OUT)[:, None]


@pytest.fixture(scope="module")
def inputs():
    """Correlated, and a few channels far larger than the rest, as in language models."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(IN // 4, IN, generator=generator) + 0.2 * torch.randn(IN // 4, IN, generator=generator)
    x = torch.randn(TOKENS, IN // 4, generator=generator) @ mix + 0.1 * torch.randn(TOKENS, IN, generator=generator)
    x[:, :3] *= 15
    return x.view(4, TOKENS // 4, IN)
