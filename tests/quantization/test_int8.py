"""int8 weights by row and activations by token: the arithmetic of the W8A8 layers."""

from __future__ import annotations

import pytest
import torch
from linears import IN, OUT, float_linear, floats
from torch import nn

from labsupport.quantization.int8 import quantize_rows, quantize_weight_int8
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear


def test_the_weight_is_rounded_to_the_nearest_level_of_each_row():
    weight = floats(OUT, IN) * torch.logspace(-6, 3, OUT)[:, None]
    for saturation_free in (False, True):
        codes, scale = quantize_weight_int8(weight, saturation_free)
        assert codes.dtype == torch.int8
        assert ((codes * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    assert (codes.short().unflatten(1, (-1, 2)).sum(-1).abs() <= 128).all()
    exact = weight.abs().amax(1) / 127
    assert (quantize_weight_int8(weight, False)[1] / exact - 1).abs().max() < 1e-5
    assert (scale / exact).mean() < 1.35  # where PyTorch's reduce_range costs a factor of 2 in every row


def test_rows_of_zeros_and_of_huge_values():
    x = torch.stack((torch.zeros(IN), torch.full((IN,), 3e38), torch.full((IN,), 1e-38)))
    codes, scale = quantize_rows(x)
    assert torch.equal(codes[0], torch.zeros(IN))
    assert torch.isfinite(scale).all()
    assert (codes[1:].abs() <= 127).all()
    layer = DynamicQuantizedLinear.from_float(float_linear(bias=False))
    assert torch.equal(layer(x[:1]), torch.zeros(1, OUT))
    zero = nn.Linear(IN, OUT)
    nn.init.zeros_(zero.weight)
    assert torch.allclose(DynamicQuantizedLinear.from_float(zero)(x[:1]), zero.bias[None])


def test_integers_are_not_quantized_again():
    with pytest.raises(ValueError, match="weight must be floating point"):
        quantize_weight_int8(torch.zeros(4, 8, dtype=torch.int8))
