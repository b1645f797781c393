"""W8A8 with one activation scale per token, against its definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from linears import IN, float_linear, floats

from labsupport.quantization.affine import choose_qparams, quantize
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear


def test_w8a8_equals_its_definition():
    """Quantize with affine.py's grid, multiply the integers in int64, scale: nothing else may happen."""
    layer = DynamicQuantizedLinear.from_float(float_linear())
    x = floats(9, IN, seed=2)
    grid = choose_qparams(x, bits=8, symmetric=True, axis=0)
    sums = quantize(x, grid).long() @ layer.weight.long().T
    expected = sums * grid.scale.double() * layer.weight_scale.double() + layer.bias
    assert torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours():
    layer = DynamicQuantizedLinear.from_float(float_linear())
    x = floats(32, IN)
    alone = layer(x[:1])
    x[7] *= 50
    assert torch.equal(layer(x)[:1], alone)
    # one scale for the whole batch, as the document has it, does depend on them
    scale = x.abs().max() / 127
    whole = F.linear((x / scale).round() * scale, layer.dequantize(), layer.bias)[:1]
    assert (whole - alone).norm() > 0.1 * alone.norm()
