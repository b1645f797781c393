"""The stored weight: nothing lost on the way in, every byte counted, the grid that error feedback relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labsupport.quantization.qweight import (
    QuantizedWeight,
    find_scale_zero,
    quantize_to_codes,
    resolve_group_size,
    round_scale,
    scale_zero_from_range,
)

MODERATE = st.floats(-(2.0**100), 2.0**100, width=32)


def random_weight(out=6, inputs=20, bits=4, group_size=8, seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    groups = -(-inputs // group_size)
    codes = torch.randint(2**bits, (out, inputs), dtype=torch.uint8, generator=generator)
    scale = round_scale(torch.rand(out, groups, generator=generator) + 0.01)
    zero_point = torch.randint(2**bits, (out, groups), dtype=torch.int32, generator=generator)
    return codes, scale, zero_point, QuantizedWeight.from_codes(codes, scale, zero_point, bits, group_size, **extra)


@pytest.mark.parametrize("bits", range(2, 9))
def test_from_codes_loses_nothing(bits):
    codes, scale, zero_point, weight = random_weight(bits=bits)
    assert torch.equal(weight.codes(), codes)
    assert torch.equal(weight.zero_point, zero_point)
    assert weight.scale.dtype == torch.float16 and torch.equal(weight.scale.float(), scale)
    expected = np.empty((6, 20), dtype=np.float32)
    for row in range(6):
        for column in range(20):
            group = column // 8
            expected[row, column] = (int(codes[row, column]) - int(zero_point[row, group])) * scale[row, group]
    assert weight.dequantize().dtype == torch.float32
    assert np.array_equal(weight.dequantize().numpy(), expected)


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, (3, 9), elements=MODERATE), st.integers(2, 8), st.booleans())
def test_find_scale_zero_covers_the_group(values, bits, symmetric):
    group = torch.from_numpy(values)
    scale, zero_point = find_scale_zero(group, bits, symmetric)
    assert (scale > 0).all() and int(zero_point.min()) >= 0 and int(zero_point.max()) < 2**bits
    codes = quantize_to_codes(group, scale[:, None], zero_point[:, None], bits)
    stored = QuantizedWeight.from_codes(codes, scale[:, None], zero_point[:, None], bits, group_size=9)
    # The scale that is stored is the one that was used, so the half step holds for what comes back.
    beyond = 2.0**-10 * group.abs().amax(1, keepdim=True) if symmetric else 0.0
    assert ((stored.dequantize() - group).abs() <= scale[:, None] * (0.5 + 1e-4) + beyond).all()
    assert torch.equal(stored.scale.float(), scale[:, None])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_find_scale_zero_is_the_published_grid(bits):
    weight = np.random.default_rng(0).normal(0.01, 0.05, (50, 64)).astype(np.float32)
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    scale, zero_point = find_scale_zero(torch.from_numpy(weight), bits)
    exact = (high - low) / (2**bits - 1)
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32
    assert ((scale.numpy() >= exact * (1 - 1e-6)) & (scale.numpy() <= exact * (1 + 2**-9))).all()
    assert torch.equal(scale.half().float(), scale)
    assert np.abs(zero_point.numpy() - np.round(-low / exact)).max() <= 1

    scale, zero_point = find_scale_zero(torch.from_numpy(weight), bits, symmetric=True)
    exact = 2 * np.abs(weight).max(1) / (2**bits - 1)
    assert ((scale.numpy() <= exact * (1 + 1e-6)) & (scale.numpy() >= exact * (1 - 2**-9))).all()
    assert torch.equal(scale.half().float(), scale)
    assert (zero_point == 2 ** (bits - 1)).all()
    # A clipped range: the same grid as that of weights that end there.
    assert torch.equal(scale_zero_from_range(torch.tensor(-1.0), torch.tensor(2.0), bits)[0],
                       find_scale_zero(torch.tensor([-1.0, 0.3, 2.0]), bits)[0])  # fmt: skip


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_symmetric_ends_fall_as_with_the_exact_scale(bits):
    """+max|w| one half step inwards, -max|w| outwards: rounding the scale up would shrink the largest weights."""
    largest = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) + 0.01
    group = largest * torch.tensor([[1.0, -1.0]])
    scale, zero_point = find_scale_zero(group, bits, symmetric=True)
    codes = quantize_to_codes(group, scale[:, None], zero_point[:, None], bits)
    assert (codes == torch.tensor([2**bits - 1, 0])).all()


def test_round_scale_rounds_up_to_float16_or_stays():
    scale = torch.tensor([1.0, 1.0001, 0.00123, 6.2e-5, 6.0e-5, 1e-9, 65504.0, 65505.0, 1e30])
    rounded = round_scale(scale)
    assert (rounded >= scale).all()
    inside = (scale >= 2.0**-14) & (scale <= 65504)
    assert torch.equal(rounded[inside].half().float(), rounded[inside])
    assert (rounded[inside] <= scale[inside] * (1 + 2**-10)).all()
    assert torch.equal(rounded[~inside], scale[~inside])
    assert rounded[0] == 1.0
    down = round_scale(scale, up=False)
    assert (down <= scale).all() and down[0] == 1.0 and torch.equal(down[~inside], scale[~inside])
    assert torch.equal(down[inside].half().float(), down[inside])
    assert (down[inside] >= scale[inside] * (1 - 2**-10)).all()


@pytest.mark.parametrize("magnitude", [1e-12, 1e-6, 1e8, 1e30])
def test_scales_that_float16_cannot_hold_stay_float32(magnitude):
    group = torch.linspace(-1, 1, 16)[None] * magnitude
    scale, zero_point = find_scale_zero(group, 4)
    codes = quantize_to_codes(group, scale[:, None], zero_point[:, None], 4)
    stored = QuantizedWeight.from_codes(codes, scale[:, None], zero_point[:, None], 4, 16)
    assert stored.scale.dtype == torch.float32
    assert torch.allclose(stored.dequantize(), group, atol=magnitude / 15 * 1.01)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_all_zero_and_constant_groups(value, symmetric):
    group = torch.full((2, 8), value)
    scale, zero_point = find_scale_zero(group, 4, symmetric)
    codes = quantize_to_codes(group, scale[:, None], zero_point[:, None], 4)
    back = QuantizedWeight.from_codes(codes, scale[:, None], zero_point[:, None], 4, 8).dequantize()
    assert torch.isfinite(back).all()
    assert torch.allclose(back, group, atol=float(scale.max()) * 0.51 if value else 0.0)


def test_zero_point_of_all_positive_weights_can_be_stored():
    _, zero_point = find_scale_zero(torch.tensor([[4.5, 5.0], [-5.0, -4.5]]), 4)
    assert zero_point.tolist() == [0, 15]


def test_bits_per_weight_count_the_metadata():
    codes = torch.zeros(1024, 1024, dtype=torch.uint8)
    ones = torch.ones(1024, 8)
    weight = QuantizedWeight.from_codes(codes, ones, ones, 4, 128)
    assert weight.bits_per_weight == 4 + (16 + 4) / 128 == 4.15625
    assert weight.nbytes == 1024 * 512 + 1024 * 8 * 2 + 1024 * 8 // 2
    assert QuantizedWeight.from_codes(codes, ones * 0.1, ones, 4, 128).bits_per_weight == 4 + (32 + 4) / 128
    indexed = QuantizedWeight.from_codes(codes, ones, ones, 4, 128, torch.arange(1024) // 128, torch.ones(1024))
    assert indexed.nbytes == weight.nbytes + 4 * 1024 + 4 * 1024


def test_group_index_says_which_group_a_column_belongs_to():
    index = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0] * 2)
    codes, scale, zero_point, weight = random_weight(group_index=index)
    expected = (codes.float() - zero_point[:, index]) * scale[:, index]
    assert torch.equal(weight.dequantize(), expected)
    plain = random_weight()[3]
    spelled_out = random_weight(group_index=torch.arange(20) // 8)[3]
    assert torch.equal(plain.dequantize(), spelled_out.dequantize())


def test_input_scale_is_divided_out():
    input_scale = torch.rand(20, generator=torch.Generator().manual_seed(3)) + 0.5
    plain, scaled = random_weight()[3], random_weight(input_scale=input_scale)[3]
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(4))
    served = (x / input_scale) @ plain.dequantize().T  # what a folded layer computes
    assert torch.allclose(x @ scaled.dequantize().T, served, atol=1e-4)


def test_to_moves_everything():
    moved = random_weight(input_scale=torch.ones(20), group_index=torch.zeros(20))[3].to("meta")
    for tensor in (moved.packed, moved.scale, moved.packed_zero_point, moved.group_index, moved.input_scale):
        assert tensor.device.type == "meta"
    assert (moved.bits, moved.group_size, moved.shape) == (4, 8, (6, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.full((2, 8), 16, dtype=torch.uint8)}, "codes must be below"),
        ({"codes": torch.zeros(8, dtype=torch.uint8)}, r"codes must have shape \[out, in\], got \[8\]"),
        ({"scale": torch.ones(1, 2)}, r"scale must have shape \[out, groups\] = \[2, 2\], got \[1, 2\]"),
        ({"scale": torch.zeros(2, 2)}, "scale must be positive, got 0.0"),
        ({"scale": torch.full((2, 2), float("nan"))}, "scale must be finite, got 4 NaN"),
        ({"zero_point": torch.full((2, 2), 16)}, r"zero_point must lie in 0..15"),
        ({"zero_point": torch.full((2, 2), 1.5)}, "zero_point must hold integers"),
        ({"zero_point": torch.zeros(2, 1)}, "zero_point must have shape"),
        ({"bits": 9}, "bits must be an integer from 2 to 8"),
        ({"group_size": 0}, "group_size must be a positive integer"),
        ({"group_index": torch.zeros(7)}, r"group_index must have shape \[in\] = \[8\], got \[7\]"),
        ({"group_index": torch.full((8,), 2)}, r"group_index must lie in 0..1, got 2..2"),
        ({"input_scale": torch.ones(1)}, r"input_scale must have shape \[in\] = \[8\]"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {
        "codes": torch.zeros(2, 8, dtype=torch.uint8),
        "scale": torch.ones(2, 2),
        "zero_point": torch.zeros(2, 2, dtype=torch.int32),
        "bits": 4,
        "group_size": 4,
    }
    QuantizedWeight.from_codes(**good)
    with pytest.raises(ValueError, match=message):
        QuantizedWeight.from_codes(**{**good, **change})


def test_non_finite_weights_are_counted():
    with pytest.raises(ValueError, match="weight must be finite, got 1 NaN"):
        find_scale_zero(torch.tensor([1.0, float("nan")]), 4)


def test_resolve_group_size():
    assert [resolve_group_size(g, 100) for g in (None, -1, 64, 200)] == [100, 100, 64, 100]


@pytest.mark.parametrize("bits", range(2, 9))
def test_split_rows_gives_the_rows(bits):
    _, _, _, weight = random_weight(out=7, bits=bits)  # zero points of a part need not begin at a whole byte
    parts = weight.split_rows([2, 1, 4])
    assert [part.shape for part in parts] == [(2, 20), (1, 20), (4, 20)]
    for name in ("dequantize", "codes"):
        assert torch.equal(torch.cat([getattr(part, name)() for part in parts]), getattr(weight, name)())
    assert torch.equal(torch.cat([part.zero_point for part in parts]), weight.zero_point)
    assert all(part.packed.untyped_storage().nbytes() == part.packed.nbytes for part in parts)  # a checkpoint's size
    one = parts[1]
    again = QuantizedWeight.from_codes(one.codes(), one.scale, one.zero_point, bits, 8)
    assert one.nbytes == again.nbytes and torch.equal(one.packed_zero_point, again.packed_zero_point)


def test_split_rows_keeps_half_precision_where_a_part_allows_it():
    codes, scale, zero_point, _ = random_weight()
    scale[0, 0] = 1e-9
    wide, narrow = QuantizedWeight.from_codes(codes, scale, zero_point, 4, 8).split_rows([1, 5])
    assert wide.scale.dtype == torch.float32 and narrow.scale.dtype == torch.float16


def test_divide_rows_divides_each_row_and_keeps_the_codes():
    _, scale, _, weight = random_weight()
    divisor = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.7, 100.0])
    divided = weight.divide_rows(divisor)
    assert torch.equal(divided.codes(), weight.codes()) and divided.scale.dtype == torch.float16
    assert torch.equal(divided.scale.float(), round_scale(scale / divisor[:, None]))
    assert torch.allclose(divided.dequantize(), weight.dequantize() / divisor[:, None], rtol=2**-9)
