"""FP8 by enumeration of every code, from the definition of the format, not from torch's idea of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.quantization.affine import fake_quantize
from labsupport.quantization.fp8 import (
    fp8_codes,
    fp8_dequantize,
    fp8_fake_quantize,
    fp8_format,
    fp8_quantize,
)


def decode(code: int, exponent_bits: int, mantissa_bits: int, ieee: bool) -> float:
    """A code's value from its bits. E4M3 has no infinities and one NaN per sign; E5M2 follows IEEE 754."""
    sign = -1.0 if code >> 7 else 1.0
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & (2**mantissa_bits - 1)
    bias, last = 2 ** (exponent_bits - 1) - 1, 2**exponent_bits - 1
    if ieee and exponent == last:
        return math.nan if mantissa else sign * math.inf
    if not ieee and exponent == last and mantissa == 2**mantissa_bits - 1:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


@pytest.mark.parametrize(("name", "ieee"), [("e4m3", False), ("e5m2", True)])
def test_all_256_codes_are_decoded_as_defined(name, ieee):
    spec = fp8_format(name)
    expected = [decode(code, spec.exponent_bits, spec.mantissa_bits, ieee) for code in range(256)]
    for ours, theirs in zip(fp8_codes(name).tolist(), expected, strict=True):
        assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


@pytest.mark.parametrize(
    ("name", "finite", "nan", "inf", "largest", "min_normal", "min_subnormal", "relative"),
    [("e4m3", 254, 2, 0, 448, 2**-6, 2**-9, 2**-4), ("e5m2", 248, 6, 2, 57344, 2**-14, 2**-16, 2**-3)],
)
def test_facts_of_the_formats(name, finite, nan, inf, largest, min_normal, min_subnormal, relative):
    codes, spec = fp8_codes(name), fp8_format(name)
    values = codes[codes.isfinite()]
    assert (len(values), int(codes.isnan().sum()), int(codes.isinf().sum())) == (finite, nan, inf)
    assert len(set(values.tolist())) == finite - 1  # 0.0 and -0.0 are one value
    assert values.max() == -values.min() == largest == spec.max
    assert values[values > 0].min() == min_subnormal == spec.min_subnormal
    assert spec.min_normal == min_normal and spec.max_relative_error == relative


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_casting_takes_the_nearest_code_everywhere(name):
    spec = fp8_format(name)
    levels = fp8_codes(name)
    levels = levels[levels.isfinite()].unique()
    middles = (levels[1:] + levels[:-1]) / 2
    x = torch.cat([levels, middles, middles * (1 + 1e-5), middles * (1 - 1e-5), torch.linspace(-600, 600, 5001)])
    x = x.clamp(-spec.max, spec.max)
    error = (fp8_fake_quantize(x, name, scale=1.0) - x).abs()
    assert torch.equal(error, (x[:, None] - levels).abs().amin(1))
    normal = x.abs() >= spec.min_normal
    worst = (error[normal] / x[normal].abs()).max()
    assert worst <= spec.max_relative_error
    assert worst > 0.9 * spec.max_relative_error / (1 + spec.max_relative_error)
    assert error[~normal].max() <= spec.min_subnormal / 2


def test_a_uniform_grid_is_not_fp8():
    x = torch.tensor([0.02, 100.0, 300.0])
    assert fp8_fake_quantize(x, scale=1.0).tolist() == [0.01953125, 96.0, 288.0]
    gauss = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 10
    real = ((fp8_fake_quantize(gauss, scale=1.0) - gauss) ** 2).mean()
    sixteenths = (((gauss * 16).round() / 16 - gauss) ** 2).mean()
    assert real > 150 * sixteenths


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_values_beyond_the_range_saturate(name):
    largest = fp8_format(name).max
    x = torch.tensor([largest * 1.07, 1e30, -1e30, largest])
    assert fp8_fake_quantize(x, name, scale=1.0).tolist() == [largest, largest, -largest, largest]


def test_integers_win_on_gaussians_and_fp8_on_dynamic_range():
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(100_000, generator=generator) * 10
    integer = ((fake_quantize(gauss, symmetric=True) - gauss) ** 2).mean()
    fp8 = ((fp8_fake_quantize(gauss) - gauss) ** 2).mean()
    assert 4 < fp8 / integer < 20

    wide = torch.randn(100_000, generator=generator) * 10 ** (4 * torch.rand(100_000, generator=generator) - 2)
    relative = {
        "int8": ((fake_quantize(wide, symmetric=True) - wide) / wide).abs().median(),
        "fp8": ((fp8_fake_quantize(wide) - wide) / wide).abs().median(),
    }
    assert relative["fp8"] < 0.05 < 10 * relative["fp8"] < relative["int8"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.sampled_from(["e4m3", "e5m2"]),
)
def test_scaled_error_bound_for_any_float32(values, name):
    x, spec = torch.tensor(values), fp8_format(name)
    quantized = fp8_quantize(x, name)
    back = fp8_dequantize(quantized)
    assert torch.isfinite(back).all()
    bound = torch.maximum(x.double().abs() * spec.max_relative_error, quantized.scale.double() * spec.min_subnormal / 2)
    assert ((back.double() - x.double()).abs() <= bound * (1 + 1e-5) + 1e-44).all()


def test_scale_maps_the_largest_value_to_the_largest_code():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.01], [1.0], [100.0], [0.0]])
    per_row = fp8_quantize(x, axis=0)
    assert per_row.scale.shape == (4, 1) and per_row.values.dtype == torch.float8_e4m3fn
    assert per_row.values.float().abs().amax(1).tolist() == [448.0, 448.0, 448.0, 0.0]
    assert per_row.nbytes == 4 * 64 + 4 * 4
    assert torch.equal(per_row.dequantize()[3], torch.zeros(64))
    per_tensor = fp8_quantize(x)
    assert per_tensor.scale.item() == pytest.approx(x.abs().max().item() / 448)
    error = {name: (q.dequantize() - x)[0].norm() for name, q in (("row", per_row), ("tensor", per_tensor))}
    assert error["row"] < error["tensor"]


def test_half_precision_and_empty():
    x = torch.tensor([60000.0, -3.0], dtype=torch.float16)
    assert fp8_fake_quantize(x).dtype == torch.float16 and torch.isfinite(fp8_fake_quantize(x)).all()
    assert fp8_fake_quantize(torch.empty(0)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fp8_quantize(torch.ones(2), "e3m4"), "format must be one of 'e4m3', 'e5m2', got 'e3m4'"),
        (lambda: fp8_quantize(torch.tensor([1.0, math.nan])), "x must be finite, got 1 NaN"),
        (lambda: fp8_quantize(torch.ones(2), scale=0.0), "scale must be positive and finite, got 0.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
