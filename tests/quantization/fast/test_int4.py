"""Every 4-bit kernel that this machine can run agrees with dequantizing, at the most extreme values it may be given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.quantization.fast import probes
from labsupport.quantization.fast.int4 import INT4_WEIGHT_KERNELS, Int4Numba, int4_kernel
from labsupport.quantization.qweight import QuantizedWeight
from labsupport.quantization.rtn import rtn_quantize

njit = pytest.importorskip("numba").njit if probes.has_numba() else None
INT4_HERE = [kernel for kernel in INT4_WEIGHT_KERNELS if kernel.supports(rtn_quantize(torch.ones(64, 64), 4, 32))]
needs_numba = pytest.mark.skipif(not probes.has_numba(), reason="Numba is not installed")


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", INT4_HERE)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 16, 200])
@pytest.mark.parametrize(
    ("shape", "group_size"), [((64, 576), 32), ((128, 256), 64), ((80, 512), 256), ((48, 128), 128)]
)
def test_int4_kernels_agree_with_dequantizing(kernel, n, shape, group_size):
    weight = rtn_quantize(floats(*shape) + 0.3, 4, group_size)
    assert kernel.supports(weight)
    x = floats(n, shape[1], seed=1)
    exact = x.double() @ weight.dequantize().double().T
    made = kernel(weight)
    error = (made(x).double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert made(x).shape == exact.shape
    # Int4Numba rounds x to 16 bits within each group
    tolerance = 2e-2 if getattr(made, "dtype", None) == torch.bfloat16 else 5e-5
    assert (error < tolerance).all()


@pytest.mark.parametrize("kernel", INT4_HERE)
@pytest.mark.parametrize("symmetric", [False, True])
def test_int4_kernels_give_the_weight_back(kernel, symmetric):
    weight = rtn_quantize(floats(80, 256), 4, 64, symmetric)
    made = kernel(weight)
    assert torch.equal(made.dequantize(), weight.dequantize())
    back = QuantizedWeight.from_codes(*made.unpack(), 4, 64)
    assert torch.equal(back.codes(), weight.codes())
    assert torch.equal(back.zero_point, weight.zero_point)
    assert torch.equal(back.scale, weight.scale)
    assert back.scale.dtype == weight.scale.dtype
    assert back.nbytes == weight.nbytes


@pytest.mark.parametrize("kernel", INT4_HERE)
def test_int4_kernels_take_columns_in_another_order(kernel):
    weight, order = (
        rtn_quantize(floats(80, 256), 4, 64),
        torch.randperm(256, generator=torch.Generator().manual_seed(0)),
    )
    made = kernel(weight, order)
    assert torch.equal(made.unpack()[0], weight.codes()[:, order])
    straight = kernel(QuantizedWeight.from_codes(weight.codes()[:, order], weight.scale, weight.zero_point, 4, 64))
    assert torch.equal(made(floats(3, 256, seed=1)), straight(floats(3, 256, seed=1)))


@needs_numba
@settings(max_examples=40)
@given(
    n=st.integers(1, 9),
    out=st.integers(1, 70),
    columns=st.integers(1, 10).map(lambda count: 32 * count),
    group_size=st.sampled_from([16, 32, 64, 128, 96, None]),
    magnitude=st.sampled_from([1e-2, 1.0, 1e4]),
    outlier=st.sampled_from([1.0, 3000.0]),
    seed=st.integers(0, 2**16),
)
def test_the_compiled_int4_kernel_is_wrong_by_half_a_16_bit_step_at_most(
    n, out, columns, group_size, magnitude, outlier, seed
):
    weight = rtn_quantize(floats(out, columns, seed=seed) * magnitude, 4, group_size)
    if not Int4Numba.supports(weight):
        assert weight.scale.dtype == torch.float32 or weight.group_size % 32
        return
    x = floats(n, columns, seed=seed + 1)
    x[:, 0] *= outlier  # it costs its own group precision, and no other
    dense = weight.dequantize().double()
    exact = x.double() @ dense.T
    step = torch.cat([g.abs().amax(1, keepdim=True).expand_as(g) / 32639 for g in x.split(weight.group_size, 1)], 1)
    bound = 0.51 * step.double() @ dense.abs().T + 1e-6 * x.abs().double() @ dense.abs().T
    made = Int4Numba(weight)
    assert ((made(x).double() - exact).abs() <= bound).all()
    assert torch.equal(made.dequantize(), weight.dequantize())


@needs_numba
def test_the_compiled_int4_kernel_sums_without_saturation():
    """Every nibble 15 and every byte of x at its end: 16 bits must hold eight sums of two products."""
    weight = QuantizedWeight.from_codes(
        torch.full((16, 256), 15, dtype=torch.uint8), torch.ones(16, 2), torch.zeros(16, 2, dtype=torch.int32), 4, 128
    )
    made = Int4Numba(weight)
    for value in (32639.0, -32639.0, 32512.0, 127.0, -32640.0 + 256 + 127):
        x = torch.full((1, 256), value)
        x[0, ::128] = 32639.0  # the step of each group is 1
        assert torch.allclose(made(x), x @ weight.dequantize().T, rtol=1e-6)


@needs_numba
def test_the_vector_instructions_of_the_int4_kernel_do_what_the_loops_say():
    from labsupport.quantization.fast import numba_int4

    if not torch.cpu._is_avx2_supported():
        pytest.skip("no AVX2: the loops are what runs")
    generator = np.random.default_rng(0)
    packed = generator.integers(0, 256, (3, 8, 64), dtype=np.uint8)
    x_bytes = generator.integers(-128, 128, (2, 8, 16)).astype(np.int8)

    @njit
    def vectors(block, eight, r, sums):
        numba_int4._multiply_32_avx2(packed, block, eight, x_bytes, r, sums)

    for block, eight, r in ((0, 0, 0), (2, 4, 1), (1, 4, 0)):
        where = np.uint64(block), np.uint64(eight), np.uint64(r)
        expected, got = np.ones(16, np.int32), np.ones(16, np.int32)
        numba_int4._multiply_32_loops(packed, where[0], where[1], x_bytes, where[2], expected)
        vectors(*where, got)
        assert (expected == got).all()


@needs_numba
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_compiled_int4_kernel_does_not_hide_numbers_that_overflowed(value):
    made = Int4Numba(rtn_quantize(floats(16, 64), 4, 32))
    x = floats(2, 64)
    x[1, 40] = value
    assert made(x)[0].isfinite().all()
    assert not made(x)[1].isfinite().any()
    assert made(torch.zeros(1, 64)).eq(0).all()


def test_weights_that_no_int4_kernel_takes_are_left_to_dequantizing():
    assert int4_kernel(rtn_quantize(floats(16, 60), 4, 20)) is None
    tiny = rtn_quantize(floats(16, 64) * 1e-7, 4, 32)
    assert tiny.scale.dtype == torch.float32
    made = int4_kernel(tiny)
    assert made is None or not isinstance(made, Int4Numba)
