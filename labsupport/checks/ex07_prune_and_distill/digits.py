"""Splits of the digits, each with a teacher."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labsupport.checks.ex07_prune_and_distill.calling import layers_of, network_of

WRONG_LABELS = 0.6  # share of labels that are drawn at random


@lru_cache(maxsize=16)
def draw_digits(seed: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A teacher trained on the right labels, the same images with mostly random labels, and held-out images."""
    from labsupport.distillation.digits import load_digits

    digits = load_digits(seed % 2**32)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(10, digits.train_y.shape, generator=generator)
    wrong = torch.rand(digits.train_y.shape, generator=generator, dtype=torch.float32) < WRONG_LABELS
    layers = []
    for fan_in, fan_out in ((64, 128), (128, 10)):
        weight = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float32) * (2 / fan_in) ** 0.5
        layers.append([weight, torch.zeros(fan_out, dtype=torch.float32)])
    teacher = network_of(layers).requires_grad_()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    with torch.enable_grad():
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(teacher(digits.train_x), digits.train_y).backward()
            optimizer.step()
    case = {
        "teacher": layers_of(teacher)[::2],
        "images": digits.train_x,
        "labels": torch.where(wrong, random, digits.train_y),
    }
    return case, digits.test_x, digits.test_y
