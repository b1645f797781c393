"""The layers with int8 weights: one scale per row, a byte per weight."""

from __future__ import annotations

import pytest
import torch
from linears import IN, OUT, float_linear, floats

from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear


def test_nan_and_infinity_stay_in_their_row():
    x = floats(4, IN)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    for make in (DynamicQuantizedLinear.from_float, Int8WeightLinear.from_float):
        layer = make(float_linear())
        out = layer(x)
        assert not torch.isfinite(out[1:3]).any()
        assert torch.allclose(out[[0, 3]], layer(x[[0, 3]]), atol=1e-4)


def test_memory_falls_to_a_quarter_and_no_float_weight_is_kept():
    source = float_linear()
    before = source.weight.numel() * 4
    for make in (DynamicQuantizedLinear.from_float, Int8WeightLinear.from_float):
        layer = make(source)
        expected = before // 4 + 4 * OUT + 4 * OUT  # codes, scales, bias
        for _ in range(2):  # before the first call, and after it, when the kernel may have taken the weight
            assert layer.nbytes == expected
            assert sum(t.numel() * t.element_size() for t in layer.buffers()) == expected
            layer(floats(1, IN))
        assert sum(t.numel() * t.element_size() for t in layer.state_dict().values()) == expected
        assert not list(layer.parameters())
        assert not [t for t in layer.state_dict().values() if t.is_floating_point() and t.numel() >= OUT * IN]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"x must have 192 features.*\[2, 100\]"):
        DynamicQuantizedLinear.from_float(float_linear())(floats(2, 100))
    with pytest.raises(ValueError, match=r"weight must be int8.*float32"):
        DynamicQuantizedLinear(floats(4, 4), torch.ones(4))
    with pytest.raises(ValueError, match=r"weight_scale must have shape \[4\]"):
        DynamicQuantizedLinear(torch.zeros(4, 8, dtype=torch.int8), torch.ones(8))
