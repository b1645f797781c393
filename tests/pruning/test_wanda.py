"""Wanda against loops over its formula, and against magnitude on inputs of very different size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labsupport.pruning.magnitude import keep_largest, magnitude_mask
from labsupport.pruning.wanda import InputNorm, wanda_mask, wanda_scores


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loops(weight: Tensor, x: Tensor, sparsity: float, n_of_m: tuple[int, int] | None = None) -> Tensor:
    """The formula, one weight at a time."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    for i in range(weight.shape[0]):
        scores = [
            abs(float(weight[i, j])) * math.sqrt(sum(float(v) ** 2 for v in x[:, j])) for j in range(weight.shape[1])
        ]
        if n_of_m is None:
            groups = [(range(len(scores)), round(sparsity * len(scores)))]
        else:
            n, m = n_of_m
            groups = [(range(start, start + m), m - n) for start in range(0, len(scores), m)]
        for columns, count in groups:
            for j in sorted(columns, key=lambda j: scores[j])[:count]:
                mask[i, j] = False
    return mask


def norm_of(x: Tensor) -> Tensor:
    collected = InputNorm(x.shape[-1])
    collected.add(x)
    return collected.norm


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.5, 0.9, 1.0])
def test_equals_the_formula(sparsity: float) -> None:
    weight, x = gaussian(7, 20), gaussian(30, 20, seed=1) * torch.logspace(-2, 2, 20)
    assert torch.equal(wanda_mask(weight, norm_of(x), sparsity), loops(weight, x, sparsity))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:5"])
def test_equals_the_formula_in_groups(pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    weight, x = gaussian(5, 40), gaussian(30, 40, seed=1) * torch.logspace(-2, 2, 40)[torch.randperm(40)]
    mask = wanda_mask(weight, norm_of(x), pattern=pattern)
    assert torch.equal(mask, loops(weight, x, 0.5, (n, m)))
    assert (mask.unflatten(1, (-1, m)).sum(-1) == n).all()


@given(rows=st.integers(1, 4), columns=st.integers(1, 20), sparsity=st.floats(0, 1), dead=st.booleans())
def test_every_row_loses_the_same_number(rows: int, columns: int, sparsity: float, dead: bool) -> None:
    weight = gaussian(rows, columns).round()  # ties
    norm = torch.zeros(columns) if dead else gaussian(columns, seed=1).abs().round()
    mask = wanda_mask(weight, norm, sparsity)
    assert ((~mask).sum(1) == round(sparsity * columns)).all()


def test_comparison_within_the_row_not_the_layer() -> None:
    """A row of small weights keeps its half (section 3); ranked over the layer it would lose everything."""
    weight, norm = torch.cat([gaussian(4, 32), 1e-4 * gaussian(4, 32, seed=1)]), torch.ones(32)
    assert (wanda_mask(weight, norm).sum(1) == 16).all()
    over_layer = keep_largest(wanda_scores(weight, norm).flatten(), 128).view(8, 32)
    assert not over_layer[4:].any()


def test_equal_norms_give_magnitude_per_row() -> None:
    weight = gaussian(6, 30)
    expected = torch.stack([magnitude_mask(row, 0.4) for row in weight])
    assert torch.equal(wanda_mask(weight, torch.full((30,), 3.0), 0.4), expected)


def test_an_input_that_is_always_zero_loses_its_weights_first() -> None:
    norm = torch.ones(8)
    norm[3] = 0
    weight = torch.ones(2, 8)
    weight[:, 3] = 100
    assert not wanda_mask(weight, norm, 1 / 8)[:, 3].any()


def test_held_out_error_is_below_magnitude() -> None:
    spread = torch.logspace(-1.5, 1.5, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(3))]
    weight, held_out = gaussian(32, 64), gaussian(500, 64, seed=2) * spread
    norm = norm_of(gaussian(500, 64, seed=1) * spread)

    def error(mask: Tensor) -> float:
        return float((held_out @ (weight * ~mask).T).square().sum())

    assert error(wanda_mask(weight, norm)) < 0.2 * error(magnitude_mask(weight, 0.5))


def test_norm_over_all_batches() -> None:
    x = gaussian(24, 6) * 1e3
    x[0, 0] = 3e5  # a massive activation beside ordinary ones
    expected = x.double().square().sum(0).sqrt()
    for batches in ([x], [x.view(2, 3, 4, 6)], [x[:5], x[5:5], x[5:]], list(x)):
        collected = InputNorm(6)
        for batch in batches:
            collected.add(batch)
        assert torch.allclose(collected.norm.double(), expected, rtol=1e-6) and collected.num_tokens == 24
    with pytest.raises(ValueError, match=r"inputs must have shape \[..., 6\], got \[2, 7\]"):
        collected.add(torch.ones(2, 7))


@pytest.mark.parametrize(
    ("weight", "norm", "options", "message"),
    [
        (torch.ones(2, 8), torch.ones(7), {}, r"input_norm must be .* \[8\]"),
        (torch.ones(8), torch.ones(8), {}, r"weight must be a floating-point \[out, in\]"),
        (torch.ones(2, 8, dtype=torch.int32), torch.ones(8), {}, "weight must be a floating-point"),
        (torch.ones(2, 8), -torch.ones(8), {}, "input_norm must not be negative"),
        (torch.ones(2, 8), torch.full((8,), math.nan), {}, "input_norm must be finite"),
        (torch.full((2, 8), math.inf), torch.ones(8), {}, "weight must be finite"),
        (torch.ones(2, 8), torch.ones(8), {"sparsity": 1.5}, "sparsity must be"),
        (torch.ones(2, 6), torch.ones(6), {"pattern": "2:4"}, "multiple of m = 4"),
        (torch.ones(2, 8), torch.ones(8), {"pattern": "two of four"}, "pattern must look like"),
    ],
)
def test_bad_input_is_named(weight: Tensor, norm: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wanda_mask(weight, norm, **options)
