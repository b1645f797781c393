"""Every W8A8 kernel that this machine can run is exact, at the most extreme values it may be given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.quantization.fast import probes
from labsupport.quantization.fast.int8 import (
    INT8_KERNELS,
    Fbgemm,
    int8_kernel,
    saturation_free_limit,
)

SOME_WEIGHT = torch.zeros(64, 64, dtype=torch.int8)
INT8_HERE = [kernel for kernel in INT8_KERNELS if kernel.supports(SOME_WEIGHT)]
needs_fbgemm = pytest.mark.skipif(Fbgemm not in INT8_HERE, reason="this machine's PyTorch has no FBGEMM")


def integers(*shape, low=-128, high=127, seed=0):
    return torch.randint(low, high + 1, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_exact(kernel, x, weight):
    exact = x.long() @ weight.long().T
    got = kernel(weight)(x).double()
    # beyond 2**24 float32 has no odd numbers
    tolerance = torch.where(exact.abs() <= 2**24, 0.0, exact.abs() * 2.0**-23)
    assert ((got - exact).abs() <= tolerance).all(), kernel.__name__


@pytest.mark.parametrize("kernel", INT8_HERE)
@pytest.mark.parametrize("columns", [1, 2, 63, 576])
def test_int8_products_are_exact_at_every_extreme(kernel, columns):
    """255 * 127 * 2 does not fit 16 bits, which is where AVX2 sums pairs: a kernel that lets it saturate fails here."""
    weights = [torch.full((24, columns), w, dtype=torch.int8) for w in (-128, -65, -64, -63, 63, 64, 65, 127)]
    weights += [integers(24, columns), integers(24, columns, low=-64, high=64)]
    inputs = [torch.full((5, columns), x, dtype=torch.int8) for x in (-128, -127, 127)] + [integers(5, columns, seed=1)]
    for weight in weights:
        for x in inputs:
            assert_exact(kernel, x, weight)


@pytest.mark.parametrize("kernel", INT8_HERE)
@settings(max_examples=30)
@given(
    n=st.integers(0, 40),
    out=st.integers(1, 70),
    columns=st.integers(1, 100),
    low=st.integers(-128, 127),
    seed=st.integers(0, 2**16),
)
def test_int8_products_are_exact_for_any_shape(kernel, n, out, columns, low, seed):
    weight = integers(out, columns, low=low, seed=seed)
    assert_exact(kernel, integers(n, columns, seed=seed + 1), weight)
    assert torch.equal(kernel(weight).unpack(), weight)


@pytest.mark.parametrize("kernel", INT8_HERE)
def test_int8_kernels_take_long_rows_and_many(kernel):
    assert_exact(kernel, integers(3, 5000, low=100), integers(8, 5000, low=100))
    assert_exact(kernel, integers(600, 64), integers(16, 64))
    # sums that pass 2**24 on the way and come back: 7000 products up, 7000 down
    weight = integers(8, 7000, low=100)
    assert_exact(
        kernel, torch.cat((integers(3, 7000, low=120), -integers(3, 7000, low=120)), 1), torch.cat((weight, weight), 1)
    )


@pytest.mark.parametrize("kernel", INT8_HERE)
def test_int8_kernels_round_to_the_nearest(kernel):
    x = floats(4, 96) * 30
    weight = integers(16, 96)
    assert torch.equal(kernel(weight)(x).double(), kernel(weight)(x.round()).double())


@needs_fbgemm
def test_avx2_saturates_unless_it_is_prevented():
    """What the two modes of Fbgemm are for: forced to one pass, unsafe weights come out wrong on a CPU without VNNI."""
    weight, x = torch.full((8, 64), 127, dtype=torch.int8), torch.full((1, 64), 127, dtype=torch.int8)
    forced = Fbgemm(weight)
    assert not forced.one_pass
    forced.one_pass = True
    if not probes.has_vnni() and torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert not (forced(x) == 127 * 127 * 64).any()
    assert (Fbgemm(weight)(x) == 127 * 127 * 64).all()


@needs_fbgemm
def test_only_neighbouring_pairs_of_one_sign_need_two_passes():
    weight = torch.zeros(4, 6, dtype=torch.int8)
    weight[0] = torch.tensor([127, 1, 64, 64, -127, 127])
    assert Fbgemm(weight).one_pass
    weight[0, 1] = 2
    assert not Fbgemm(weight).one_pass
    weight[0, :2] = torch.tensor([-64, -65])
    assert not Fbgemm(weight).one_pass
    assert not Fbgemm(torch.tensor([[0, 0, -128], [0, 0, 127]], dtype=torch.int8)[:, [2, 2, 2]]).one_pass


@needs_fbgemm
@settings(max_examples=50)
@given(out=st.integers(1, 6), columns=st.integers(1, 40), seed=st.integers(0, 2**16), spread=st.floats(0.01, 3))
def test_scales_at_the_limit_give_one_pass(out, columns, seed, spread):
    weight = floats(out, columns, seed=seed).mul(spread).exp()
    scale = torch.maximum(weight.abs().amax(1, keepdim=True) / 127, saturation_free_limit(weight))
    assert Fbgemm((weight / scale).round().to(torch.int8)).one_pass


def test_the_fastest_kernel_here_is_exact_too():
    x, weight = integers(3, 32), integers(7, 32)
    assert torch.equal(int8_kernel(weight)(x).double(), (x.long() @ weight.long().T).double())
