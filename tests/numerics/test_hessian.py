"""The Hessian that GPTQ and SparseGPT share: how it is collected, and the factor of its inverse."""

from __future__ import annotations

import pytest
import torch
from hessians import correlated, gaussian, hessian_of

from labsupport.numerics.hessian import HessianAccumulator, inverse_cholesky


def test_any_leading_dimensions_and_running() -> None:
    x = correlated(24, 400)  # wider than one strip
    expected = 2 * x.double().T @ x.double() / 24
    for batches in (
        [x],
        [x.view(2, 3, 4, 400)],
        [x[:5], x[5:6].view(1, 1, 400), x[6:6], x[6:].view(3, 6, 400)],
        list(x),
    ):
        accumulator = HessianAccumulator(400)
        for batch in batches:
            accumulator.add(batch)
        assert accumulator.num_tokens == 24
        assert torch.allclose(accumulator.hessian.double(), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(accumulator.hessian, accumulator.hessian.T)


def test_the_hessian_is_float32_for_half_precision_inputs() -> None:
    x = 300 * gaussian(64, 8).half()  # squares overflow float16
    accumulator = HessianAccumulator(8)
    accumulator.add(x)
    assert accumulator.hessian.dtype == torch.float32
    assert torch.allclose(accumulator.hessian, 2 * x.float().T @ x.float() / 64, rtol=1e-4)


def test_inverse_cholesky() -> None:
    hessian = hessian_of(correlated(1000, 200)).double()
    factor = inverse_cholesky(hessian, damping=0.01)
    assert torch.equal(factor, factor.triu()) and (factor.diagonal() > 0).all()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(200)
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(200, dtype=torch.float64), atol=1e-8)


def test_the_accumulator_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match=r"inputs must have shape \[\.\.\., 8\], got \[4, 7\]"):
        HessianAccumulator(8).add(torch.ones(4, 7))
