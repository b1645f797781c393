"""Packed weights: their size, and checkpoints that differ in what they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from linears import IN, OUT, act_order, float_linear, floats

from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.packed import QuantizedLinear
from labsupport.quantization.rtn import rtn_quantize


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packed_weights_take_what_their_format_takes(bits):
    weight = rtn_quantize(float_linear().weight, bits, 64)
    layer = (Int4WeightLinear if bits == 4 else QuantizedLinear)(weight)
    groups = OUT * IN // 64
    expected = (OUT * IN * bits + groups * 16 + groups * bits) // 8
    assert layer.nbytes == weight.nbytes == expected
    layer(floats(1, IN))
    assert layer.nbytes == expected


@pytest.mark.parametrize("bits", [4, 3])
def test_the_checkpoint_decides_which_optional_tensors_there_are(bits):
    make = Int4WeightLinear if bits == 4 else QuantizedLinear
    plain = rtn_quantize(float_linear().weight, bits, 64)
    ordered = replace(act_order(plain), input_scale=floats(IN).exp())
    wide = rtn_quantize(floats(OUT, IN) * 1e-7, bits, 64)
    assert wide.scale.dtype == torch.float32
    x = floats(3, IN)
    for source in (plain, ordered, wide):
        for target in (plain, ordered, wide):
            layer = make(target)
            layer(x)
            layer.load_state_dict(make(source).state_dict())
            assert torch.equal(layer.dequantize(), source.dequantize())
            assert torch.allclose(layer(x), x @ source.dequantize().T, rtol=1e-4, atol=1e-3)


def test_four_bits_are_not_three():
    with pytest.raises(ValueError, match="weight must have 4 bits, got 3"):
        Int4WeightLinear(rtn_quantize(floats(8, 64), 3, 32))
