"""W8A8 with one calibrated activation scale, against its definition and against dynamic scales."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from linears import IN, calibrated, float_linear, floats

from labsupport.quantization.affine import choose_qparams, dequantize, quantize
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.static import StaticQuantizedLinear
from labsupport.quantization.observers import MinMaxObserver, PercentileObserver


@pytest.mark.parametrize("symmetric", [False, True])
def test_static_equals_its_definition(symmetric):
    calibration, x = floats(100, IN, seed=7) + 0.7, 2 * floats(9, IN, seed=2) + 0.7  # some of x saturates
    grid = choose_qparams(calibration, bits=8, symmetric=symmetric)
    layer = StaticQuantizedLinear.from_float(float_linear(), grid)
    if symmetric:  # the kernel has the code -128 as well
        on_grid = (x / grid.scale).round().clamp(-128, 127) * grid.scale
    else:
        on_grid = dequantize(quantize(x, grid), grid)
    expected = F.linear(on_grid, layer.dequantize(), layer.bias)
    assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    observed = StaticQuantizedLinear.from_float(float_linear(), observer=MinMaxObserver(symmetric=symmetric))
    for part in calibration.split(30):
        observed.observe(part)
    assert torch.equal(observed(x), layer(x))


def test_static_saturates_where_the_inputs_grow_and_dynamic_follows():
    source = float_linear(bias=False)
    dynamic, static = DynamicQuantizedLinear.from_float(source), calibrated(source)

    @torch.no_grad()
    def error(layer, x):
        return float((layer(x) - source(x)).square().sum() / source(x).square().sum())

    x = floats(256, IN, seed=11)
    assert error(static, x) < 2 * error(dynamic, x)
    for factor in (3.0, 0.1):
        assert error(static, factor * x) > 5 * error(dynamic, factor * x)


def test_static_refuses_to_run_before_calibration():
    layer = StaticQuantizedLinear.from_float(float_linear())
    with pytest.raises(RuntimeError, match=r"not calibrated.*observe"):
        layer(floats(2, IN))
    layer.observe(floats(8, IN))
    first = layer(floats(2, IN))
    layer.observe(100 * floats(8, IN))  # a wider range, also after the first call
    assert not torch.equal(layer(floats(2, IN)), first)
    loaded = StaticQuantizedLinear.from_float(float_linear())
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded(floats(2, IN)), layer(floats(2, IN)))


def test_static_takes_any_observer_with_one_scale():
    x = torch.cat((floats(999, IN), torch.full((1, IN), 1000.0)))
    layer = StaticQuantizedLinear.from_float(float_linear(), observer=PercentileObserver(percentile=99))
    layer.observe(x)
    assert layer.input_scale < 0.1
    with pytest.raises(ValueError, match=r"qparams must have 8 bits and one scale.*\[4, 1\]"):
        StaticQuantizedLinear.from_float(float_linear(), choose_qparams(x[:4], axis=0))
    with pytest.raises(ValueError, match="got 4 bits"):
        StaticQuantizedLinear.from_float(float_linear(), choose_qparams(x, bits=4))
