"""Handwritten digits, and networks small enough to train on them in a second: a first trial of distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

NUM_CLASSES = 10
SIDE = 8  # an image is 8 by 8 pixels


@dataclass(frozen=True)
class Digits:
    """Images as 64 numbers in 0..1, and the digit that each shows; no image is in both parts."""

    train_x: Float[Tensor, "n 64"]
    train_y: Int64[Tensor, " n"]
    test_x: Float[Tensor, "m 64"]
    test_y: Int64[Tensor, " m"]

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.train_x, self.train_y

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.test_x, self.test_y


def load_digits(seed: int = 0, test_share: float = 0.4) -> Digits:
    """scikit-learn's 1,797 digits, split at random, with the same share of each class in both parts.

    Raises:
        ValueError: ``test_share`` is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be between 0 and 1; got {test_share}")
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    x, y = sklearn_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=test_share, random_state=seed, stratify=y)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Digits(train_x.float(), train_y.long(), test_x.float(), test_y.long())


def mlp(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them: ``mlp((64, 16, 10))``."""
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be at least two positive numbers; got {tuple(sizes)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
