"""Inputs of a layer, and their Hessian, for the tests of what works on them."""

from __future__ import annotations

import torch
from torch import Tensor

from labsupport.numerics.hessian import HessianAccumulator


def correlated(tokens: int, features: int, seed: int = 0, mixing_seed: int = 100) -> Tensor:
    """Activations with a decaying spectrum; the same ``mixing_seed`` is the same distribution."""
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(mixing_seed))
    spectrum = torch.arange(1, features + 1).float() ** -0.7
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed)) * spectrum @ mixing


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(x: Tensor) -> Tensor:
    accumulator = HessianAccumulator(x.shape[-1])
    accumulator.add(x)
    return accumulator.hessian
