"""Round-to-nearest really takes the nearest level, of the grid of that row and group."""

from __future__ import annotations

import pytest
import torch

from labsupport.quantization.rtn import rtn_quantize


def weights(out=16, inputs=576, seed=0):
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("group_size", [32, 128, None, -1])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_weight_takes_the_nearest_of_all_levels(bits, group_size, symmetric):
    weight = weights(out=5)
    quantized = rtn_quantize(weight, bits, group_size, symmetric)
    columns = torch.arange(576) // quantized.group_size
    scale, zero_point = quantized.scale.float()[:, columns], quantized.zero_point[:, columns]
    levels = (torch.arange(2**bits).view(-1, 1, 1) - zero_point) * scale  # [levels, out, in]
    best = (levels - weight).abs().amin(0)
    error = (quantized.dequantize() - weight).abs()
    assert torch.allclose(error, best, atol=1e-7)
    beyond = 2.0**-10 * weight.abs().max() if symmetric else 0.0  # see find_scale_zero
    assert (error <= scale * (0.5 + 1e-4) + beyond).all()


def test_groups_may_not_divide_the_row():
    quantized = rtn_quantize(weights(), 4, 128)
    assert quantized.scale.shape == (16, 5)
    assert torch.equal(quantized.dequantize()[:, 512:], rtn_quantize(weights()[:, 512:], 4, 64).dequantize())


def test_groups_belong_to_one_row_only():
    weight = weights() * torch.logspace(-4, 0, 16)[:, None]
    quantized = rtn_quantize(weight, 4, 64)
    assert quantized.scale.shape == (16, 9)
    for row in (0, 8, 15):
        relative = (quantized.dequantize()[row] - weight[row]).norm() / weight[row].norm()
        assert relative < 0.15  # one range for all rows: more than 1 for the small ones


@pytest.mark.parametrize("symmetric", [False, True])
def test_dead_groups_give_zeros_and_no_nan(symmetric):
    weight = weights()
    weight[:, :64] = 0
    weight[3] = 0
    back = rtn_quantize(weight, 4, 64, symmetric).dequantize()
    assert (back[:, :64] == 0).all() and (back[3] == 0).all() and torch.isfinite(back).all()


def test_finer_grids_have_smaller_errors():
    weight = weights()
    error = {
        (bits, group): float(((rtn_quantize(weight, bits, group).dequantize() - weight) ** 2).mean())
        for bits in (3, 4, 8)
        for group in (32, 128, None)
    }
    for bits in (3, 4, 8):
        assert error[bits, 32] < error[bits, 128] < error[bits, None]
    for group in (32, 128, None):
        assert error[3, group] > 3 * error[4, group] > 100 * error[8, group]


def test_the_input_is_left_alone_and_half_precision_is_accepted():
    weight = torch.nn.Parameter(weights())
    before = weight.detach().clone()
    quantized = rtn_quantize(weight)
    assert torch.equal(weight, before) and not quantized.dequantize().requires_grad
    half = weight.detach().bfloat16()
    assert torch.equal(rtn_quantize(half).dequantize(), rtn_quantize(half.float()).dequantize())


def test_a_quantized_weight_is_a_fixed_point_of_its_own_grid():
    once = rtn_quantize(weights(), 4, 64).dequantize()
    assert torch.allclose(rtn_quantize(once, 4, 64).dequantize(), once, atol=2e-4)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.ones(4), {}, r"weight must be floating point of shape \[out, in\]"),
        (torch.ones(2, 4).int(), {}, "weight must be floating point"),
        (torch.tensor([[1.0, float("inf")]]), {}, "weight must be finite, got 0 NaN and 1 infinite"),
        (torch.ones(2, 4), {"bits": 1}, "bits must be an integer from 2 to 8"),
        (torch.ones(2, 4), {"group_size": 0}, "group_size must be a positive integer"),
    ],
)
def test_bad_input_is_named(weight, options, message):
    with pytest.raises(ValueError, match=message):
        rtn_quantize(weight, **options)
