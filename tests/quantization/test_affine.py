"""Affine quantization against its definition, for every float32, and against common mistakes."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labsupport import quantization
from labsupport.quantization.affine import QParams, choose_qparams, dequantize, fake_quantize, quantize

ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=ANY_FLOAT32)
SYMMETRIES = [{"symmetric": False}, {"symmetric": True}, {"symmetric": True, "full_range": True}]
GRANULARITIES = [
    {},
    {"axis": 0},
    {"axis": 1},
    {"axis": (0, 1)},
    {"group_size": 1},
    {"group_size": 4},
    {"group_size": 16},
]
everywhere = given(MATRICES, st.integers(2, 8), st.sampled_from(SYMMETRIES), st.sampled_from(GRANULARITIES))


def scale_of_each(qparams: QParams, x: torch.Tensor) -> torch.Tensor:
    if qparams.group_size is None:
        return qparams.scale.expand_as(x)
    columns = torch.arange(x.shape[-1]) // qparams.group_size
    return qparams.scale[..., columns]


@settings(max_examples=300, deadline=None)
@everywhere
def test_error_is_at_most_half_a_step(values, bits, symmetry, granularity):
    x = torch.from_numpy(values)
    qparams = choose_qparams(x, bits=bits, **symmetry, **granularity)
    error = (dequantize(quantize(x, qparams), qparams).double() - x.double()).abs()
    # x / scale is rounded to float32: 255 steps carry an error of 255 * 2**-24 steps or so.
    assert (error <= scale_of_each(qparams, x).double() * (0.5 + 1e-4)).all()


@settings(max_examples=200, deadline=None)
@everywhere
def test_zero_is_exact_and_round_trip_is_idempotent(values, bits, symmetry, granularity):
    x = torch.from_numpy(values)
    qparams = choose_qparams(x, bits=bits, **symmetry, **granularity)
    assert torch.equal(dequantize(quantize(torch.zeros_like(x), qparams), qparams), torch.zeros_like(x))

    codes = quantize(x, qparams)
    assert int(codes.min()) >= qparams.qmin and int(codes.max()) <= qparams.qmax
    again = dequantize(codes, qparams)
    assert torch.isfinite(again).all()
    assert torch.equal(quantize(again, qparams), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_and_scales_equal_a_float64_oracle(bits):
    x = np.random.default_rng(bits).normal(1.0, 3.0, 1000).astype(np.float32)
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (np.float64(high) - np.float64(low)) / (2**bits - 1)
    zero_point = np.round(-low / scale)
    codes = np.clip(np.round(x / scale) + zero_point, 0, 2**bits - 1)

    qparams = choose_qparams(torch.from_numpy(x), bits=bits)
    assert qparams.dtype == torch.uint8 and (qparams.qmin, qparams.qmax) == (0, 2**bits - 1)
    assert float(qparams.scale) == pytest.approx(scale, rel=1e-6)
    assert int(qparams.zero_point) == zero_point
    ours = quantize(torch.from_numpy(x), qparams)
    assert np.mean(ours.numpy() != codes) < 0.005  # a value on the edge of two steps may fall either way
    assert np.allclose(dequantize(ours, qparams), scale * (ours.numpy() - zero_point), rtol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_grids(bits):
    x = torch.tensor([-0.7, 0.1, 0.5])
    restricted = choose_qparams(x, bits=bits, symmetric=True)
    full = choose_qparams(x, bits=bits, symmetric=True, full_range=True)
    half = 2 ** (bits - 1)
    assert (restricted.qmin, restricted.qmax, full.qmin, full.qmax) == (-half + 1, half - 1, -half, half - 1)
    assert restricted.dtype == full.dtype == torch.int8
    assert float(restricted.scale) == pytest.approx(0.7 / (half - 1)) and int(restricted.zero_point) == 0
    assert float(full.scale) == pytest.approx(2 * 0.7 / (2**bits - 1)) and int(full.zero_point) == 0


def test_zero_point_is_an_integer_code_and_codes_are_clamped():
    qparams = QParams(torch.tensor(0.5), torch.tensor(111, dtype=torch.int32))
    x = torch.tensor([-1000.0, -55.5, 0.0, 0.5, 72.0, 1000.0])
    assert quantize(x, qparams).tolist() == [0, 0, 111, 112, 255, 255]
    codes = torch.tensor([0, 111, 112, 255], dtype=torch.uint8)
    assert dequantize(codes, qparams).tolist() == [-55.5, 0.0, 0.5, 72.0]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("options", SYMMETRIES)
def test_the_whole_of_float32_does_not_overflow(bits, options):
    """max - min is infinite in float32, and so is the end of a grid that lies half a step outside the range."""
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([-largest, -1e38, 0.0, 1e38, largest])
    qparams = choose_qparams(x, bits=bits, **options)
    back = dequantize(quantize(x, qparams), qparams)
    assert torch.isfinite(qparams.scale) and torch.isfinite(back).all()
    assert ((back.double() - x.double()).abs() <= qparams.scale.double() * 0.5001).all()


@pytest.mark.parametrize(("low", "high"), [(5.0, 10.0), (-10.0, -5.0), (100.0, 101.0), (-101.0, -100.0)])
def test_range_without_zero(low, high):
    x = torch.linspace(low, high, 1001)
    step = max(abs(low), abs(high)) / 255
    error = fake_quantize(x) - x
    assert float((error**2).mean()) < step**2 / 4
    assert len(quantize(x, choose_qparams(x)).unique()) >= (high - low) / step


@pytest.mark.parametrize("options", SYMMETRIES)
@pytest.mark.parametrize("value", [3.0, -7.5, 0.0, 1e-30, 1e-45, 3e38])
def test_constant_tensors(value, options):
    x = torch.full((2, 5), value)
    qparams = choose_qparams(x, **options)
    assert torch.isfinite(qparams.scale).all() and (qparams.scale > 0).all()
    assert torch.allclose(fake_quantize(x, **options), x, rtol=0.5 / 127, atol=1e-38)


def test_all_zero_gives_scale_one():
    for options in ({}, {"axis": 0}, {"group_size": 2}):
        assert torch.equal(
            choose_qparams(torch.zeros(2, 4), **options).scale,
            torch.ones_like(choose_qparams(torch.zeros(2, 4), **options).scale),
        )


@pytest.mark.parametrize("options", [{}, {"axis": 0}, {"group_size": 2}])
def test_non_finite_input_is_counted(options):
    x = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), -float("inf"), 0.0]])
    with pytest.raises(ValueError, match=r"x must be finite, got 1 NaN and 2 infinite among 6 values"):
        choose_qparams(x, **options)
    with pytest.raises(ValueError, match=r"x must be finite, got 1 NaN and 2 infinite"):
        quantize(x, choose_qparams(torch.ones(2, 3)))


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 10, 12, 16, 4.0, True, None])
def test_codes_of_more_than_eight_bits_would_wrap(bits):
    with pytest.raises(ValueError, match=r"bits must be an integer from 2 to 8, got"):
        choose_qparams(torch.ones(3), bits=bits)


def test_more_bits_less_error():
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for options in SYMMETRIES:
        errors = [float(((fake_quantize(x, bits=bits, **options) - x) ** 2).mean()) for bits in range(2, 9)]
        assert all(more / fewer < 0.4 for fewer, more in itertools.pairwise(errors))


def test_symmetric_codes_need_their_own_zero_point():
    """With the offset of unsigned codes forgotten, every value is 128 steps off: 100 % "advantage"."""
    advantages = []
    for seed in range(50):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(seed)) * 3 + 2
        qparams = choose_qparams(x, symmetric=True)
        codes = quantize(x, qparams)
        assert codes.dtype == torch.int8 and int(codes.min()) < 0
        error = dequantize(codes, qparams) - x
        assert abs(float(error.mean())) < 0.1 * float(qparams.scale)
        asymmetric = fake_quantize(x) - x
        advantages.append(1 - float((asymmetric**2).mean() / (error**2).mean()))
    assert 0.2 < float(np.mean(advantages)) < 0.4


def test_a_token_does_not_depend_on_its_batch_with_a_scale_of_its_own():
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    with_outlier = x.clone()
    with_outlier[17] *= 50
    alone = fake_quantize(x[:1], axis=0)
    assert torch.equal(fake_quantize(with_outlier, axis=0)[:1], alone)

    per_tensor, per_token = fake_quantize(with_outlier)[0] - x[0], alone[0] - x[0]
    assert float((per_tensor**2).sum() / (per_token**2).sum()) > 100


def test_groups_equal_slices_quantized_alone_and_the_last_may_be_smaller():
    x = torch.randn(3, 5, 576, generator=torch.Generator().manual_seed(1))
    qparams = choose_qparams(x, bits=4, group_size=128)
    assert qparams.scale.shape == (3, 5, 5)
    parts = [fake_quantize(part, bits=4, axis=(0, 1)) for part in x.split(128, dim=-1)]
    assert torch.equal(fake_quantize(x, bits=4, group_size=128), torch.cat(parts, -1))


def test_axis_keeps_its_scales():
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
    assert choose_qparams(x).scale.shape == ()
    assert choose_qparams(x, axis=0).scale.shape == (4, 1, 1)
    assert choose_qparams(x, axis=-1).scale.shape == (1, 1, 8)
    assert choose_qparams(x, axis=(0, 1)).scale.shape == (4, 6, 1)
    for row in range(4):
        assert torch.equal(fake_quantize(x, axis=0)[row], fake_quantize(x[row]))
    assert choose_qparams(x[0], axis=0, group_size=4).scale.shape == (6, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", SYMMETRIES)
def test_half_precision_is_computed_in_float32(dtype, options):
    x = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 15000).clamp(-60000, 60000).to(dtype)
    qparams = choose_qparams(x, **options)
    assert qparams.scale.dtype == torch.float32
    exact = choose_qparams(x.float(), **options)
    assert torch.equal(qparams.scale, exact.scale)
    assert torch.equal(quantize(x, qparams), quantize(x.float(), exact))
    assert fake_quantize(x, **options).dtype == dtype and torch.isfinite(fake_quantize(x, **options)).all()


def test_float64_keeps_its_range_and_precision():
    x = torch.tensor([-1e300, 0.0, 3e299, 1e300], dtype=torch.float64)
    assert torch.allclose(fake_quantize(x), x, atol=1e300 / 255)
    assert choose_qparams(x).scale.dtype == torch.float64


def test_empty_and_scalar():
    for x, options in [(torch.empty(0), {}), (torch.empty(3, 0), {"axis": 0}), (torch.empty(3, 0), {"group_size": 4})]:
        assert fake_quantize(x, **options).shape == x.shape
    assert choose_qparams(torch.empty(0)).scale.tolist() == 1.0
    assert float(fake_quantize(torch.tensor(3.0))) == 3.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_qparams(torch.arange(4)), "x must be a floating-point tensor, got torch.int64"),
        (lambda: quantize(torch.arange(4), choose_qparams(torch.ones(4))), "x must be a floating-point tensor"),
        (lambda: choose_qparams(torch.ones(2, 2), axis=2), "axis must be a dimension of x, which has 2, got 2"),
        (
            lambda: choose_qparams(torch.ones(2, 2), group_size=0),
            "group_size must be a positive integer or None, got 0",
        ),
        (lambda: choose_qparams(torch.ones(2, 2), axis=1, group_size=1), "which contradicts axis=1"),
        (lambda: choose_qparams(torch.tensor(1.0), group_size=2), "at least one dimension"),
        (lambda: choose_qparams(torch.ones(2), full_range=True), "full_range=True needs symmetric=True"),
        (lambda: fake_quantize(torch.ones(2), choose_qparams(torch.ones(2)), bits=4), "either qparams or options"),
        (lambda: QParams(torch.ones(2), torch.zeros(1, dtype=torch.int32)), "must have the same shape"),
        (lambda: QParams(torch.ones(2), torch.zeros(2)), "zero_point must hold integers"),
        (
            lambda: quantize(torch.ones(2, 9), choose_qparams(torch.ones(2, 8), group_size=4)),
            "does not fit a tensor of shape",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_public_name_is_there():
    for name in quantization.__all__:
        assert getattr(quantization, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = quantization.nonsense


def test_the_package_is_imported_without_torch():
    program = "import sys, labsupport.quantization; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
