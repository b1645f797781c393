"""SparseGPT against optimal brain surgeon with full inverses, against least squares, and against the other methods."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labsupport.numerics.hessian import HessianAccumulator
from labsupport.pruning.magnitude import achieved_sparsity, magnitude_mask
from labsupport.pruning.semi_structured import nm_mask
from labsupport.pruning.sparsegpt import sparsegpt_by_columns, sparsegpt_prune, sparsegpt_prune_together
from labsupport.pruning.wanda import InputNorm, wanda_mask


def correlated(tokens: int, features: int, seed: int = 0, mixing_seed: int = 100) -> Tensor:
    """Activations with a decaying spectrum and inputs of different size; one ``mixing_seed`` is one distribution."""
    generator = torch.Generator().manual_seed(mixing_seed)
    mixing = torch.randn(features, features, generator=generator)
    sizes = torch.logspace(-0.5, 0.5, features)[torch.randperm(features, generator=generator)]
    spectrum = torch.arange(1, features + 1).float() ** -0.7
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed)) * spectrum @ mixing * sizes


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(x: Tensor) -> Tensor:
    accumulator = HessianAccumulator(x.shape[-1])
    accumulator.add(x)
    return accumulator.hessian


def output_nmse(pruned: Tensor, weight: Tensor, x: Tensor) -> float:
    return float((x @ (pruned - weight).T).square().sum() / (x @ weight.T).square().sum())


def obs_oracle(
    weight: Tensor, hessian: Tensor, sparsity: float, block_size: int, n_of_m: tuple[int, int] | None = None
) -> Tensor:
    """Optimal brain surgeon row by row in float64: for each column the Hessian of what remains is inverted again
    (paper, section 3.1); no Cholesky factor, no shared or lazy update."""
    rows, columns = weight.shape
    hessian = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    weight = weight.double().clone()
    gone = torch.zeros(rows, columns, dtype=torch.bool)
    width = n_of_m[1] if n_of_m else block_size
    for j in range(columns):
        if j % width == 0:
            block = range(j, min(j + width, columns))
            cost = torch.stack([weight[:, k] ** 2 / inverses[k][0, 0] for k in block], dim=1)  # [rows, block]
            if n_of_m:
                for row in range(rows):
                    gone[row, [j + k for k in cost[row].argsort()[: n_of_m[1] - n_of_m[0]].tolist()]] = True
            else:
                count = round(sparsity * rows * block.stop) - round(sparsity * rows * j)
                for flat in cost.flatten().argsort()[:count].tolist():
                    gone[flat // len(block), j + flat % len(block)] = True
        for row in range(rows):
            if gone[row, j]:
                weight[row, j:] -= weight[row, j] / inverses[j][0, 0] * inverses[j][0]
                weight[row, j] = 0
    return weight


@pytest.mark.parametrize("block_size", [128, 32, 20, 7, 1])
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_equals_optimal_brain_surgeon(sparsity: float, block_size: int) -> None:
    weight, hessian = gaussian(12, 80), hessian_of(correlated(400, 80))
    expected = obs_oracle(weight, hessian, sparsity, block_size)
    for prune in (sparsegpt_prune, sparsegpt_by_columns):
        result = prune(weight, hessian, sparsity, block_size=block_size)
        assert torch.equal(result == 0, expected == 0)
        assert torch.allclose(result.double(), expected, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("n_of_m", [(2, 4), (1, 4), (4, 8), (3, 5), (20, 40)])
def test_equals_optimal_brain_surgeon_in_groups(n_of_m: tuple[int, int]) -> None:
    weight, hessian = gaussian(12, 80), hessian_of(correlated(400, 80))
    expected = obs_oracle(weight, hessian, 0.5, 128, n_of_m)
    result = sparsegpt_prune(weight, hessian, pattern="{}:{}".format(*n_of_m))
    assert torch.equal(result == 0, expected == 0)
    assert torch.allclose(result.double(), expected, atol=1e-3 * float(expected.abs().max()))
    assert ((result != 0).unflatten(1, (-1, n_of_m[1])).sum(-1) == n_of_m[0]).all()


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 6), groups=st.integers(1, 12), block_size=st.integers(1, 50), sparsity=st.floats(0, 1),
    n_of_4=st.sampled_from([None, 1, 2, 3]), damping=st.sampled_from([0.001, 0.01, 0.3]), dead=st.integers(0, 9),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_the_fast_form_equals_the_papers(
    rows: int, groups: int, block_size: int, sparsity: float, n_of_4: int | None, damping: float, dead: int, seed: int
) -> None:
    weight, x = gaussian(rows, 4 * groups, seed=seed), correlated(12 * groups, 4 * groups, seed)
    x[:, :dead] = 0
    options = (sparsity, f"{n_of_4}:4" if n_of_4 else None, damping, block_size)
    fast, paper = (prune(weight, hessian_of(x), *options) for prune in (sparsegpt_prune, sparsegpt_by_columns))
    assert torch.equal(fast == 0, paper == 0)
    assert torch.allclose(fast, paper, atol=1e-4 * float(paper.abs().max()))


def test_the_papers_form_breaks_ties_as_the_fast_form_does() -> None:
    weight = gaussian(12, 80).round()
    for options in ((0.5,), (0.5, "2:4")):
        assert torch.equal(
            sparsegpt_prune(weight, torch.eye(80), *options), sparsegpt_by_columns(weight, torch.eye(80), *options)
        )


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_uncorrelated_inputs_give_magnitude_exactly(sparsity: float) -> None:
    """H ∝ I: no column can compensate for another, so nothing moves and the cost of a weight is its square."""
    weight, hessian = gaussian(24, 64), 3.7 * torch.eye(64)
    result = sparsegpt_prune(weight, hessian, sparsity, block_size=64)
    assert torch.equal(result, weight * magnitude_mask(weight, sparsity))
    assert torch.equal(sparsegpt_prune(weight, hessian, pattern="2:4"), weight * nm_mask(weight.abs()))
    # smaller blocks are ranked one by one
    blocks = [part * magnitude_mask(part, sparsity) for part in weight.split(16, dim=1)]
    if sparsity == 0.5:  # 24 * 16 * 0.5 is whole
        assert torch.equal(sparsegpt_prune(weight, hessian, sparsity, block_size=16), torch.cat(blocks, dim=1))


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 40), block_size=st.integers(1, 50), sparsity=st.floats(0, 1),
    dead=st.integers(0, 40), seed=st.integers(0, 1000),
)  # fmt: skip
def test_count_is_exact(rows: int, columns: int, block_size: int, sparsity: float, dead: int, seed: int) -> None:
    x = correlated(3 * columns, columns, seed)
    x[:, :dead] = 0
    result = sparsegpt_prune(gaussian(rows, columns, seed=seed), hessian_of(x), sparsity, block_size=block_size)
    assert int((result == 0).sum()) == round(sparsity * rows * columns) and result.isfinite().all()


def test_nothing_pruned_changes_nothing_and_all_pruned_leaves_nothing() -> None:
    weight, hessian = gaussian(8, 40), hessian_of(correlated(200, 40))
    kept_weight, kept_hessian = weight.clone(), hessian.clone()
    assert torch.equal(sparsegpt_prune(weight, hessian, 0.0), weight)
    assert not sparsegpt_prune(weight, hessian, 1.0).any()
    assert torch.equal(weight, kept_weight) and torch.equal(hessian, kept_hessian)


def test_between_masking_alone_and_least_squares() -> None:
    """For its own mask: better than not moving the rest, and no better than the best values that exist."""
    weight, x = gaussian(10, 60), correlated(500, 60)
    result = sparsegpt_prune(weight, hessian_of(x), 0.5, damping=0.0, block_size=20)
    best = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept in enumerate(result != 0):
        best[row, kept] = torch.linalg.lstsq(x[:, kept].double(), (x @ weight[row]).double()[:, None]).solution[:, 0]
    lower, given_, upper = (output_nmse(w.float(), weight, x) for w in (best, result, weight * (result != 0)))
    assert lower * 0.999 <= given_ < 0.5 * upper
    assert given_ < 3 * lower


@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_error_sparsegpt_wanda_magnitude(pattern: str | None, seed: int) -> None:
    weight = gaussian(64, 128, seed=seed)
    x, held_out = correlated(4096, 128, 10 + seed), correlated(2048, 128, 20 + seed)
    norm = InputNorm(128)
    norm.add(x)
    by_magnitude = nm_mask(weight.abs()) if pattern else magnitude_mask(weight, 0.5)
    sparsegpt = output_nmse(sparsegpt_prune(weight, hessian_of(x), pattern=pattern), weight, held_out)
    wanda = output_nmse(weight * wanda_mask(weight, norm.norm, pattern=pattern), weight, held_out)
    magnitude = output_nmse(weight * by_magnitude, weight, held_out)
    assert sparsegpt < 0.7 * wanda < wanda < 0.9 * magnitude


def test_each_block_loses_its_share() -> None:
    weight, hessian = gaussian(32, 96), hessian_of(correlated(600, 96))
    small, whole = (sparsegpt_prune(weight, hessian, 0.5, block_size=size) for size in (16, 96))
    per_block = [int((result == 0)[:, j : j + 16].sum()) for result in (small, whole) for j in range(0, 96, 16)]
    assert per_block[:6] == [32 * 8] * 6
    assert sum(per_block[6:]) == 6 * 32 * 8 and per_block[6:] != per_block[:6]


def test_dead_inputs_go_first_and_by_magnitude() -> None:
    weight, x = gaussian(8, 40), correlated(300, 40)
    x[:, [3, 17]] = 0
    result = sparsegpt_prune(weight, hessian_of(x), 12 / 320)  # 12 of 320, and 16 weights read dead inputs
    dead = torch.zeros_like(weight, dtype=torch.bool)
    dead[:, [3, 17]] = True
    assert not ((result == 0) & ~dead).any()
    smallest = weight[dead].abs().sort().values[:12]
    assert torch.equal(weight[result == 0].abs().sort().values, smallest)
    assert torch.equal(result[result != 0], weight[result != 0])  # and nothing has to compensate for them


def test_hessian_of_zeros_is_magnitude() -> None:
    weight = gaussian(8, 32)
    assert torch.equal(sparsegpt_prune(weight, torch.zeros(32, 32), 0.5), weight * magnitude_mask(weight, 0.5))


def test_fewer_tokens_than_inputs() -> None:
    weight, x = gaussian(16, 64), correlated(20, 64)
    result = sparsegpt_prune(weight, hessian_of(x), 0.5)
    assert achieved_sparsity(result) == 0.5 and output_nmse(result, weight, x) < 0.05


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_together_as_if_alone(pattern: str | None) -> None:
    weights = [gaussian(12, 80), 0.1 * gaussian(5, 80, seed=1), 10 * gaussian(7, 80, seed=2)]
    hessian = hessian_of(correlated(400, 80))
    for weight, result in zip(weights, sparsegpt_prune_together(weights, hessian, 0.45, pattern), strict=True):
        alone = sparsegpt_prune(weight, hessian, 0.45, pattern)
        assert torch.equal(result == 0, alone == 0)
        assert torch.allclose(result, alone, atol=1e-5 * float(weight.abs().max()))
    with pytest.raises(ValueError, match=r"hessian must be .* \[79, 79\] for weight \[3, 79\]"):
        sparsegpt_prune_together([*weights, gaussian(3, 79)], hessian)


def test_scale_of_the_hessian_and_precision_do_not_matter() -> None:
    weight, hessian = gaussian(16, 64), hessian_of(correlated(400, 64))
    expected = sparsegpt_prune(weight, hessian, 0.5)
    for other in (1000 * hessian, hessian.double()):
        assert torch.allclose(sparsegpt_prune(weight, other, 0.5), expected, atol=1e-4)
    half = sparsegpt_prune(weight.bfloat16(), hessian, 0.5)
    assert half.dtype == torch.float32 and achieved_sparsity(half) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hessian": torch.eye(7)}, r"hessian must be .* \[8, 8\] for weight \[4, 8\], got torch.float32 \[7, 7\]"),
        ({"hessian": torch.eye(8).long()}, "hessian must be floating point"),
        ({"hessian": torch.ones(8, 8).triu()}, "hessian must be symmetric"),
        ({"hessian": -torch.eye(8)}, "hessian must have no negative diagonal"),
        ({"hessian": torch.full((8, 8), math.nan)}, "hessian must be finite"),
        ({"weight": torch.full((4, 8), math.inf)}, "weight must be finite"),
        ({"weight": torch.ones(8)}, r"weight must be a floating-point \[out, in\]"),
        ({"weight": torch.ones(4, 8).int()}, "weight must be a floating-point"),
        ({"sparsity": -0.1}, "sparsity must be"),
        ({"pattern": "2:3"}, "multiple of m = 3"),
        ({"pattern": "half"}, "pattern must look like"),
        ({"damping": -1.0}, "damping must be"),
        ({"block_size": 0}, "block_size must be a positive integer"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {"weight": torch.ones(4, 8), "hessian": torch.eye(8)} | change
    with pytest.raises(ValueError, match=message):
        sparsegpt_prune(**arguments)
