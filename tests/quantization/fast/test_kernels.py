"""Every kernel that this machine can run gives the right answer, at the worst that it may be given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.quantization.fast import kernels
from labsupport.quantization.fast.kernels import (
    INT4_WEIGHT_KERNELS,
    INT8_KERNELS,
    INT8_WEIGHT_KERNELS,
    Fbgemm,
    FloatMM,
    available_kernels,
    int4_kernel,
    int8_kernel,
    int8_matmul,
    int8_weight_kernel,
    saturation_free_limit,
)
from labsupport.quantization.qweight import QuantizedWeight
from labsupport.quantization.rtn import rtn_quantize

njit = pytest.importorskip("numba").njit if kernels.has_numba() else None

SOME_WEIGHT = torch.zeros(64, 64, dtype=torch.int8)
INT8_HERE = [kernel for kernel in INT8_KERNELS if kernel.supports(SOME_WEIGHT)]
INT8_WEIGHT_HERE = [kernel for kernel in INT8_WEIGHT_KERNELS if kernel.supports(SOME_WEIGHT)]
INT4_HERE = [kernel for kernel in INT4_WEIGHT_KERNELS if kernel.supports(rtn_quantize(torch.ones(64, 64), 4, 32))]
needs_numba = pytest.mark.skipif(not kernels.has_numba(), reason="Numba is not installed")
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


def test_the_kernels_of_pytorch_on_x86_are_found():
    """A broken kernel fails its probe, and would then be left out of every test here."""
    if "fbgemm" in torch.backends.quantized.supported_engines and torch.cpu._is_avx2_supported():
        assert Fbgemm in INT8_HERE
        assert kernels.Int4Cpu in INT4_HERE


@pytest.mark.parametrize("kernel", INT8_HERE)
def test_int8_kernels_round_to_the_nearest(kernel):
    x = floats(4, 96) * 30
    weight = integers(16, 96)
    assert torch.equal(kernel(weight)(x).double(), kernel(weight)(x.round()).double())


@needs_fbgemm
def test_avx2_saturates_unless_it_is_prevented():
    """What the two ways of Fbgemm are for: forced to one pass, unsafe weights come out wrong on a CPU without VNNI."""
    weight, x = torch.full((8, 64), 127, dtype=torch.int8), torch.full((1, 64), 127, dtype=torch.int8)
    forced = Fbgemm(weight)
    assert not forced.one_pass
    forced.one_pass = True
    if not kernels.has_vnni() and torch.backends.cpu.get_cpu_capability() == "AVX2":
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


def test_int8_matmul_takes_the_fastest_and_checks_its_input():
    x, weight = integers(3, 32), integers(7, 32)
    assert torch.equal(int8_matmul(x, weight).double(), (x.long() @ weight.long().T).double())
    with pytest.raises(ValueError, match=r"x must be int8.*float32"):
        int8_matmul(x.float(), weight)
    with pytest.raises(ValueError, match=r"weight must be int8.*\[32\]"):
        int8_matmul(x, weight[0])
    with pytest.raises(ValueError, match="columns, got 31 and 32"):
        int8_matmul(x[:, 1:], weight)


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
    back = kernel(weight).unpack()
    assert torch.equal(back.codes(), weight.codes())
    assert torch.equal(back.zero_point, weight.zero_point)
    assert torch.equal(back.scale, weight.scale)
    assert back.scale.dtype == weight.scale.dtype
    assert back.nbytes == weight.nbytes


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
    if not kernels.Int4Numba.supports(weight):
        assert weight.scale.dtype == torch.float32 or weight.group_size % 32
        return
    x = floats(n, columns, seed=seed + 1)
    x[:, 0] *= outlier  # it costs its own group precision, and no other
    dense = weight.dequantize().double()
    exact = x.double() @ dense.T
    step = torch.cat([g.abs().amax(1, keepdim=True).expand_as(g) / 32639 for g in x.split(weight.group_size, 1)], 1)
    bound = 0.51 * step.double() @ dense.abs().T + 1e-6 * x.abs().double() @ dense.abs().T
    made = kernels.Int4Numba(weight)
    assert ((made(x).double() - exact).abs() <= bound).all()
    assert torch.equal(made.unpack().dequantize(), weight.dequantize())


@needs_numba
def test_the_compiled_int4_kernel_sums_without_saturation():
    """Every nibble 15 and every byte of x at its end: 16 bits must hold eight sums of two products."""
    weight = QuantizedWeight.from_codes(
        torch.full((16, 256), 15, dtype=torch.uint8), torch.ones(16, 2), torch.zeros(16, 2, dtype=torch.int32), 4, 128
    )
    made = kernels.Int4Numba(weight)
    for value in (32639.0, -32639.0, 32512.0, 127.0, -32640.0 + 256 + 127):
        x = torch.full((1, 256), value)
        x[0, ::128] = 32639.0  # the step of each group is 1
        assert torch.allclose(made(x), x @ weight.dequantize().T, rtol=1e-6)


@needs_numba
def test_the_vector_instructions_of_the_int4_kernel_do_what_the_loops_say():
    from labsupport.quantization.fast import numba_kernels

    if not torch.cpu._is_avx2_supported():
        pytest.skip("no AVX2: the loops are what runs")
    generator = np.random.default_rng(0)
    packed = generator.integers(0, 256, (3, 8, 64), dtype=np.uint8)
    x_bytes = generator.integers(-128, 128, (2, 8, 16)).astype(np.int8)

    @njit
    def vectors(block, eight, r, sums):
        numba_kernels._multiply_32_avx2(packed, block, eight, x_bytes, r, sums)

    for block, eight, r in ((0, 0, 0), (2, 4, 1), (1, 4, 0)):
        where = np.uint64(block), np.uint64(eight), np.uint64(r)
        expected, got = np.ones(16, np.int32), np.ones(16, np.int32)
        numba_kernels._multiply_32_loops(packed, where[0], where[1], x_bytes, where[2], expected)
        vectors(*where, got)
        assert (expected == got).all()


@needs_numba
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_compiled_int4_kernel_does_not_hide_numbers_that_overflowed(value):
    made = kernels.Int4Numba(rtn_quantize(floats(16, 64), 4, 32))
    x = floats(2, 64)
    x[1, 40] = value
    assert made(x)[0].isfinite().all()
    assert not made(x)[1].isfinite().any()
    assert made(torch.zeros(1, 64)).eq(0).all()


@needs_numba
def test_compiled_kernels_give_the_same_on_several_threads(monkeypatch):
    from labsupport.quantization.fast import numba_kernels

    int8, scale, int4, x = integers(200, 64), floats(200).abs(), rtn_quantize(floats(200, 64), 4, 32), floats(3, 64)
    alone = kernels.Int8Numba(int8, scale)(x), kernels.Int4Numba(int4)(x)
    monkeypatch.setattr(numba_kernels, "_WEIGHTS_A_THREAD", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(kernels.Int8Numba(int8, scale)(x), alone[0])
    assert torch.equal(kernels.Int4Numba(int4)(x), alone[1])


def test_weights_that_no_int4_kernel_takes_are_left_to_dequantizing():
    assert int4_kernel(rtn_quantize(floats(16, 60), 4, 20)) is None
    tiny = rtn_quantize(floats(16, 64) * 1e-7, 4, 32)
    assert tiny.scale.dtype == torch.float32
    made = int4_kernel(tiny)
    assert made is None or not isinstance(made, kernels.Int4Numba)


def test_without_private_operators_and_numba_everything_still_works(monkeypatch):
    """A later PyTorch may drop each of the operators; a probe that fails must lead to the next entry of the table."""
    monkeypatch.setattr(kernels, "_PROBED", {})
    monkeypatch.setattr(kernels, "has_numba", lambda: False)
    monkeypatch.setattr(torch, "_make_per_tensor_quantized_tensor", None)
    monkeypatch.setattr(torch, "_int_mm", None)
    monkeypatch.setattr(torch.ops, "aten", object())
    weight = integers(64, 64)
    assert isinstance(int8_kernel(weight), FloatMM)
    assert isinstance(int8_weight_kernel(weight, torch.ones(64)), kernels.Dequantize)
    assert int4_kernel(rtn_quantize(floats(64, 64), 4, 32)) is None
    assert set(available_kernels().values()) == {"FloatMM", "Dequantize"}


def test_an_operator_that_gives_wrong_answers_is_not_used(monkeypatch):
    monkeypatch.setattr(kernels, "_PROBED", {})
    monkeypatch.setattr(Fbgemm, "__call__", lambda self, x: torch.zeros(x.shape[0], 8))
    assert not Fbgemm.supports(SOME_WEIGHT)


def test_available_kernels_names_one_a_job():
    names = available_kernels()
    assert set(names) == {"int8 weights and activations", "int8 weights", "int4 weights"}
    assert names["int8 weights and activations"] in {kernel.__name__ for kernel in INT8_HERE}
