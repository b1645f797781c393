"""Magnitude masks: the count is exact whatever the weights, and no other choice of weights would be smaller."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labsupport.pruning.magnitude import achieved_sparsity, global_magnitude_masks, keep_largest, magnitude_mask

SPARSITY = st.floats(0, 1)
# few different values make many ties; the shape may be empty
COARSE = st.lists(st.integers(-3, 3).map(float), max_size=40)
FINE = st.lists(st.floats(-(2.0**60), 2.0**60, width=32), max_size=40)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(values=COARSE | FINE, sparsity=SPARSITY)
def test_count_is_exact_and_the_smallest_go(values: list[float], sparsity: float) -> None:
    weight = torch.tensor(values)
    mask = magnitude_mask(weight, sparsity)
    assert mask.dtype == torch.bool and mask.shape == weight.shape
    assert int((~mask).sum()) == round(sparsity * len(values))
    # the oracle: a stable sort in plain Python
    order = sorted(range(len(values)), key=lambda i: abs(values[i]))
    assert set((~mask).nonzero().flatten().tolist()) == set(order[: round(sparsity * len(values))])


@given(rows=st.integers(1, 5), columns=st.integers(1, 12), levels=st.integers(1, 4), data=st.data())
def test_keep_largest_counts_in_every_row(rows: int, columns: int, levels: int, data: st.DataObject) -> None:
    flat = data.draw(st.lists(st.integers(0, levels), min_size=rows * columns, max_size=rows * columns))
    num_pruned = data.draw(st.integers(0, columns))
    scores = torch.tensor(flat, dtype=torch.float32).view(rows, columns)
    kept = keep_largest(scores, num_pruned)
    for row, mask in zip(scores.tolist(), kept, strict=True):
        order = sorted(range(columns), key=lambda i: row[i])
        assert set((~mask).nonzero().flatten().tolist()) == set(order[:num_pruned])


@pytest.mark.parametrize("sparsity", [0.0, 0, 0.01, 1e-9])
def test_nothing_to_prune_is_no_error(sparsity: float) -> None:
    """The document takes the maximum of an empty selection."""
    assert magnitude_mask(gaussian(4, 4), sparsity).all()


@pytest.mark.parametrize("sparsity", [1.01, -0.1, float("nan"), float("inf"), "0.5", None, True])
def test_sparsity_is_checked(sparsity: Any) -> None:
    for call in (
        lambda: magnitude_mask(gaussian(4), sparsity),
        lambda: global_magnitude_masks({"a": gaussian(4)}, sparsity),
    ):
        with pytest.raises(ValueError, match="sparsity must be a number from 0"):
            call()


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.9, 1.0])
def test_ties_do_not_count_twice(sparsity: float) -> None:
    """The document keeps what is strictly above a threshold: of equal weights all go. A 4-bit grid is full of them."""
    ones = torch.ones(10, 10)
    assert achieved_sparsity(ones * magnitude_mask(ones, sparsity)) == pytest.approx(sparsity)
    grid = (gaussian(64, 64) * 2.3).round().clamp(-8, 7)
    mask = magnitude_mask(grid, sparsity)
    assert int((~mask).sum()) == round(sparsity * 4096)
    by_threshold = grid.abs() > grid.abs().flatten().kthvalue(round(sparsity * 4096)).values
    if sparsity < 1:
        assert int((~by_threshold).sum()) > 1.02 * round(sparsity * 4096)  # by a threshold alone


def test_the_same_weight_gives_the_same_mask() -> None:
    weight = torch.tensor([[2.0, -1.0, 1.0], [1.0, -2.0, -1.0]])
    expected = torch.tensor([[True, False, False], [True, True, True]])
    assert torch.equal(magnitude_mask(weight, 1 / 3), expected)
    strided = weight.t().contiguous().t()  # same values, other memory layout: an index is a place in the tensor
    assert torch.equal(magnitude_mask(strided, 1 / 3), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_floating_types(dtype: torch.dtype) -> None:
    weight = gaussian(3, 50).to(dtype).requires_grad_()
    mask = magnitude_mask(weight, 0.5)
    assert int(mask.sum()) == 75 and not mask.requires_grad
    assert weight.detach()[mask].abs().min() >= weight.detach()[~mask].abs().max()


def test_float64_is_compared_in_float64() -> None:
    weight = torch.tensor([1 + 1e-12, 1.0], dtype=torch.float64)
    assert magnitude_mask(weight, 0.5).tolist() == [True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_refused_by_name(bad: float) -> None:
    weight = gaussian(3, 3)
    weight[1, 1] = bad
    with pytest.raises(ValueError, match=r"weight must be finite, got . NaN and . infinite among 9"):
        magnitude_mask(weight, 0.5)
    with pytest.raises(ValueError, match=r"second must be finite"):
        global_magnitude_masks({"first": gaussian(3), "second": weight}, 0.5)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight must be a floating-point tensor, got torch.int8"):
        magnitude_mask(torch.zeros(3, dtype=torch.int8), 0.5)


@given(parts=st.lists(COARSE, max_size=4), sparsity=SPARSITY)
def test_global_masks_are_one_ranking(parts: list[list[float]], sparsity: float) -> None:
    weights = {f"w{i}": torch.tensor(part) for i, part in enumerate(parts)}
    masks = global_magnitude_masks(weights, sparsity)
    assert list(masks) == list(weights) and all(masks[name].shape == weights[name].shape for name in weights)
    together = torch.cat([*weights.values(), torch.empty(0)])
    joined = torch.cat([*masks.values(), torch.empty(0, dtype=torch.bool)])
    assert torch.equal(joined, magnitude_mask(together, sparsity))


def test_global_masks_of_a_module() -> None:
    large, small = torch.nn.Linear(20, 30), torch.nn.Linear(30, 5)
    with torch.no_grad():
        large.weight.mul_(10)
    model = torch.nn.Sequential(large, small)
    masks = global_magnitude_masks(((n, p) for n, p in model.named_parameters() if p.dim() == 2), 0.2)
    assert sum(int((~mask).sum()) for mask in masks.values()) == 150
    assert int((~masks["1.weight"]).sum()) > 0.5 * 150  # mostly from the small layer
    with pytest.raises(ValueError, match="different names"):
        global_magnitude_masks([("a", gaussian(2)), ("a", gaussian(2))], 0.5)


def test_achieved_sparsity_counts() -> None:
    assert achieved_sparsity(torch.tensor([0.0, -0.0, 1.0, 2.0]), torch.ones(4)) == 0.25
    assert achieved_sparsity() == 0.0
