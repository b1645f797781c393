"""Layers to quantize and quantized layers, for the tests of all integer layers."""

from __future__ import annotations

import torch
from torch import nn

from labsupport.quantization.layers.static import StaticQuantizedLinear
from labsupport.quantization.qweight import QuantizedWeight

IN, OUT = 192, 80


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def float_linear(in_features=IN, out_features=OUT, bias=True):
    layer = nn.Linear(in_features, out_features, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(floats(out_features, in_features) * 0.1)
        if bias:
            layer.bias.copy_(floats(out_features, seed=1))
    return layer


def calibrated(layer):
    static = StaticQuantizedLinear.from_float(layer)
    static.observe(floats(64, layer.in_features, seed=5))
    return static


def act_order(weight, seed=3):
    """A weight whose groups are made of scattered columns, as GPTQ's act-order with dynamic groups leaves it."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    inverse = torch.argsort(order)
    group_index = (torch.arange(weight.shape[1]) // weight.group_size)[inverse]
    return QuantizedWeight.from_codes(
        weight.codes()[:, inverse], weight.scale, weight.zero_point, weight.bits, weight.group_size, group_index
    )
