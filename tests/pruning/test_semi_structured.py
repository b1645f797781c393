"""N:M: exactly n of every m stay, the right ones, and the compressed form gives them all back."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labsupport.pruning.semi_structured import (
    CompressedNM,
    has_sparse_kernels,
    is_nm_sparse,
    nm_mask,
    parse_pattern,
    to_semi_structured,
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(m=st.integers(1, 8), data=st.data())
def test_exactly_n_of_every_m_and_no_better_choice(m: int, data: st.DataObject) -> None:
    n, groups, rows = data.draw(st.integers(1, m)), data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
    size = rows * groups * m
    # few levels: ties in most groups
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)), dtype=torch.float32)
    scores = scores.view(rows, groups * m)
    mask = nm_mask(scores, n, m)
    assert mask.shape == scores.shape and mask.dtype == torch.bool
    for row, kept in zip(scores.view(rows, groups, m), mask.view(rows, groups, m), strict=True):
        for group, group_kept in zip(row, kept, strict=True):
            assert int(group_kept.sum()) == n
            best = max(sum(choice) for choice in itertools.combinations(group.tolist(), n))
            assert float(group[group_kept].sum()) == best


def test_groups_lie_along_the_inputs() -> None:
    """Sparse tensor cores read 4 neighbours of a row of [out, in]."""
    weight = torch.tensor([[4.0, 3, 2, 1, 0.1, -5, 6, 0.2], [1, -2, 3, -4, 0, 0, 0, 0]])
    expected = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1, 1]]).bool()
    assert torch.equal(nm_mask(weight.abs()), expected)


@pytest.mark.parametrize(
    ("n", "m", "shape", "message"),
    [(0, 4, (4,), "1 <= n <= m"), (5, 4, (4,), "1 <= n <= m"), (True, 4, (4,), "1 <= n <= m"),
     (2.0, 4, (4,), "1 <= n <= m"), (2, 4, (3, 6), r"multiple of m = 4, got shape \[3, 6\]"),
     (2, 4, (), "multiple of m")],
)  # fmt: skip
def test_bad_groups_are_named(n: int, m: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nm_mask(torch.ones(shape), n, m)
    with pytest.raises(ValueError, match=message):
        is_nm_sparse(torch.ones(shape), n, m)


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="scores must be finite"):
        nm_mask(torch.tensor([1.0, float("nan"), 2, 3]))


def test_parse_pattern() -> None:
    assert parse_pattern("2:4") == (2, 4) and parse_pattern("4:8") == (4, 8)
    for bad in ("2", "2/4", "a:b", "2:4:8", "-2:4", "", None, 24):
        with pytest.raises(ValueError, match="pattern must look like"):
            parse_pattern(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 <= n <= m"):
        parse_pattern("5:4")


def test_is_nm_sparse() -> None:
    weight = gaussian(6, 16)
    assert not is_nm_sparse(weight)
    pruned = weight * nm_mask(weight.abs())
    assert is_nm_sparse(pruned) and not is_nm_sparse(pruned, 1, 4)
    assert not is_nm_sparse(pruned.roll(1, -1))  # half are zeros there too, but not in the right places
    assert is_nm_sparse(torch.zeros(2, 8))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 5), (16, 16), (1, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compressed_gives_everything_back_in_the_computed_bytes(n: int, m: int, dtype: torch.dtype) -> None:
    weight = gaussian(5, 3 * m).to(dtype)
    weight[0] = 0  # groups with fewer than n non-zeros
    pruned = weight * nm_mask(weight.abs(), n, m)
    stored = CompressedNM.from_dense(pruned, n, m)
    assert torch.equal(stored.to_dense(), pruned)
    kept = pruned.shape[1] // m * n
    assert stored.nbytes == len(pruned) * (kept * dtype.itemsize + math.ceil(kept * math.ceil(math.log2(m)) / 8))


def test_compressed_refuses_what_it_would_lose() -> None:
    with pytest.raises(ValueError, match="at most 2 non-zeros in every 4"):
        CompressedNM.from_dense(torch.ones(2, 8))


def test_compressed_size_by_hand() -> None:
    # 1536 x 576 in 16 bits: half of the values, 2 bits for each of them
    assert CompressedNM.from_dense(torch.zeros(1536, 576).half()).nbytes == 1536 * 576 * (8 + 1) // 8
    assert CompressedNM.from_dense(torch.zeros(1, 12).half(), 1, 4).nbytes == 3 * 2 + 1  # 6 bits of indices take a byte


def test_kernels_only_where_they_exist() -> None:
    """On a CPU this is an error that says why, not a slow or wrong multiplication."""
    assert not has_sparse_kernels("cpu")
    weight = gaussian(64, 64)
    with pytest.raises(RuntimeError, match="CUDA only"):
        to_semi_structured(weight * nm_mask(weight.abs()))


@pytest.mark.skipif(not has_sparse_kernels("cuda"), reason="2:4 kernels exist on CUDA only")
def test_cuda_kernels_multiply_the_same() -> None:
    weight = gaussian(128, 256).half().cuda()
    pruned = weight * nm_mask(weight.abs())
    x = gaussian(64, 256, seed=1).half().cuda()
    dense = torch.nn.functional.linear(x, pruned)
    assert torch.allclose(torch.nn.functional.linear(x, to_semi_structured(pruned)), dense, atol=2e-1, rtol=1e-2)
    with pytest.raises(ValueError, match="at most 2 non-zeros"):
        to_semi_structured(weight)
