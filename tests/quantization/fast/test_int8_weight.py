"""Every int8 weight-only kernel that this machine can run agrees with dequantizing."""

from __future__ import annotations

import pytest
import torch

from labsupport.quantization.fast.int8_weight import INT8_WEIGHT_KERNELS

SOME_WEIGHT = torch.zeros(64, 64, dtype=torch.int8)
INT8_WEIGHT_HERE = [kernel for kernel in INT8_WEIGHT_KERNELS if kernel.supports(SOME_WEIGHT)]


def integers(*shape, low=-128, high=127, seed=0):
    return torch.randint(low, high + 1, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", INT8_WEIGHT_HERE)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 17, 200])
@pytest.mark.parametrize("shape", [(64, 576), (33, 100)])
def test_int8_weight_kernels_agree_with_dequantizing(kernel, n, shape):
    weight, scale = integers(*shape), floats(shape[0]).abs() + 0.01
    if not kernel.supports(weight):
        pytest.skip("not for this shape")
    x = floats(n, shape[1], seed=2) * torch.logspace(-3, 3, n)[:, None]
    exact = x.double() @ (weight.double() * scale[:, None].double()).T
    made = kernel(weight, scale)
    error = (made(x).double() - exact).norm(dim=1) / exact.norm(dim=1)
    tolerance = 2e-2 if getattr(made, "dtype", None) == torch.bfloat16 else 2e-6
    assert (error < tolerance).all()
    assert made(x).shape == (n, shape[0])
    assert torch.equal(made.unpack(), weight)
