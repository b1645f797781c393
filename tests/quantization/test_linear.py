"""Linear layers that really store integers: what they compute, what they hold, and that it survives every journey."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labsupport.quantization import linear as linear_module
from labsupport.quantization.affine import choose_qparams, dequantize, quantize
from labsupport.quantization.fast import kernels
from labsupport.quantization.linear import (
    DynamicQuantizedLinear,
    Int4WeightLinear,
    Int8WeightLinear,
    QuantizedLinear,
    StaticQuantizedLinear,
    quantize_rows,
    quantize_weight_int8,
)
from labsupport.quantization.observers import MinMaxObserver, PercentileObserver
from labsupport.quantization.qweight import QuantizedWeight
from labsupport.quantization.rtn import rtn_quantize

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


def int4(layer, **changes):
    return replace(rtn_quantize(layer.weight, 4, 64), **changes)


MAKERS = {
    "dynamic": DynamicQuantizedLinear.from_float,
    "dynamic, two passes": lambda layer: DynamicQuantizedLinear.from_float(layer, saturation_free=False),
    "static": calibrated,
    "int8": Int8WeightLinear.from_float,
    "int4": lambda layer: Int4WeightLinear.from_quantized(int4(layer), layer.bias),
    "int4 awq": lambda layer: Int4WeightLinear(int4(layer, input_scale=floats(IN, seed=9).exp()), layer.bias),
    "int4 act-order": lambda layer: Int4WeightLinear(act_order(int4(layer)), layer.bias),
    "int4, no kernel": lambda layer: Int4WeightLinear(rtn_quantize(layer.weight, 4, 20), layer.bias),
    "3 bits": lambda layer: QuantizedLinear.from_quantized(rtn_quantize(layer.weight, 3, 64), layer.bias),
    "3 bits act-order": lambda layer: QuantizedLinear(act_order(rtn_quantize(layer.weight, 3, 64)), layer.bias),
}
ACTIVATION_ERROR = {"dynamic": 0.02, "dynamic, two passes": 0.02, "static": 0.03}


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


@pytest.fixture
def layer(name):
    return MAKERS[name](float_linear())


@pytest.mark.parametrize("shape", [(1, IN), (3, IN), (2, 5, IN), (IN,), (0, IN), (300, IN)])
def test_every_layer_computes_what_its_dequantized_weight_computes(name, layer, shape):
    x = floats(*shape, seed=2)
    expected = F.linear(x, layer.dequantize(), layer.bias)
    out = layer(x)
    assert out.shape == (*shape[:-1], OUT)
    assert out.dtype == x.dtype
    assert (out - expected).norm() <= ACTIVATION_ERROR.get(name, 1e-4) * expected.norm()


def test_w8a8_equals_its_definition():
    """Quantize with affine.py's grid, multiply the integers in int64, scale: nothing else may happen."""
    layer = DynamicQuantizedLinear.from_float(float_linear())
    x = floats(9, IN, seed=2)
    grid = choose_qparams(x, bits=8, symmetric=True, axis=0)
    sums = quantize(x, grid).long() @ layer.weight.long().T
    expected = sums * grid.scale.double() * layer.weight_scale.double() + layer.bias
    assert torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


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


def test_nan_and_infinity_stay_in_their_row():
    x = floats(4, IN)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    for make in (DynamicQuantizedLinear.from_float, Int8WeightLinear.from_float):
        layer = make(float_linear())
        out = layer(x)
        assert not torch.isfinite(out[1:3]).any()
        assert torch.allclose(out[[0, 3]], layer(x[[0, 3]]), atol=1e-4)


def test_e09_a_sample_does_not_depend_on_its_neighbours():
    layer = DynamicQuantizedLinear.from_float(float_linear())
    x = floats(32, IN)
    alone = layer(x[:1])
    x[7] *= 50
    assert torch.equal(layer(x)[:1], alone)
    # one scale for the whole batch, as the document has it, does depend on them
    scale = x.abs().max() / 127
    whole = F.linear((x / scale).round() * scale, layer.dequantize(), layer.bias)[:1]
    assert (whole - alone).norm() > 0.1 * alone.norm()


def test_e10_memory_falls_to_a_quarter_and_no_float_weight_is_kept():
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


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_e10_packed_weights_take_what_their_format_takes(bits):
    weight = rtn_quantize(float_linear().weight, bits, 64)
    layer = (Int4WeightLinear if bits == 4 else QuantizedLinear)(weight)
    groups = OUT * IN // 64
    expected = (OUT * IN * bits + groups * 16 + groups * bits) // 8
    assert layer.nbytes == weight.nbytes == expected
    layer(floats(1, IN))
    assert layer.nbytes == expected


def test_e10_a_checkpoint_decides_what_the_layer_computes(name, layer):
    x = floats(3, IN, seed=4)
    layer(x)
    zeroed = {key: torch.zeros_like(value) for key, value in layer.state_dict().items()}
    for key in zeroed.keys() & {"scale", "input_scale"}:  # a scale of 0 is no scale
        zeroed[key] += 1
    layer.load_state_dict(zeroed)
    assert torch.equal(layer(x), torch.zeros(3, OUT))


def test_e11_static_saturates_where_the_inputs_grow_and_dynamic_follows():
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


def test_state_dict_round_trip(name, layer):
    x = floats(3, IN, seed=4)
    out = layer(x)
    state = layer.state_dict()
    assert not any(value.is_meta for value in state.values())
    other = float_linear()
    with torch.no_grad():
        other.weight.neg_()
    fresh = MAKERS[name](other)
    assert not torch.equal(fresh(x), out)  # packed for its own weight before it loads another
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), out)
    assert torch.equal(layer(x), out)  # and giving the state away has not changed the first


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


@pytest.mark.parametrize("used", [False, True])
def test_copies_and_pickles(name, layer, used):
    x = floats(3, IN, seed=4)
    out = layer(x) if used else MAKERS[name](float_linear())(x)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(layer, file)
        file.seek(0)
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    for twin in copies:
        assert torch.equal(twin(x), out)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True).keys() == layer.state_dict().keys()
    assert torch.equal(layer(x), out)


def test_to_another_dtype_keeps_integers_and_scales(name, layer):
    x = floats(3, IN, seed=4)
    out, before = layer(x), layer.state_dict()
    layer.to(torch.bfloat16)
    after = layer.state_dict()
    assert after.pop("bias").dtype == torch.bfloat16
    for key, value in after.items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key]) or value.isnan().any()
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - out).norm() < 0.05 * out.norm()


def test_to_another_device_takes_everything_along(name, layer):
    layer(floats(1, IN))
    shapes = {key: (value.shape, value.dtype) for key, value in layer.state_dict().items()}
    layer.to("meta")
    state = layer.state_dict()
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == shapes
    assert all(value.is_meta for value in state.values())
    assert layer.to_empty(device="cpu").state_dict().keys() == shapes.keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_layers_compute_the_same_on_cuda(name, layer):
    x = floats(5, IN, seed=4)
    out = layer(x)
    moved = layer.to("cuda")(x.to("cuda")).cpu()
    assert (moved - out).norm() < 0.02 * out.norm()  # 4-bit weights multiply in bfloat16 there
    assert (layer.to("cpu")(x) - out).norm() < 1e-5 * out.norm()


def test_reading_the_buffers_gives_them_back(name, layer):
    x = floats(3, IN, seed=4)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    out = layer(x)
    for key, value in before.items():
        assert torch.equal(getattr(layer, key), value)
        assert torch.equal(layer(x), out)
    assert torch.equal(layer.dequantize(), MAKERS[name](float_linear()).dequantize())


def test_the_weight_is_held_once(name, layer):
    """After a call either the buffers or the kernel have the weight, never both."""
    layer(floats(1, IN))
    kernel = layer._kernel
    if kernel is not None and kernel.owns_weight:
        assert all(layer._buffers[key] is None or layer._buffers[key].is_meta for key in layer._owned)
    else:
        assert not any(value.is_meta for value in layer._buffers.values() if value is not None)


def test_first_calls_from_many_threads_agree(name, layer):
    x = floats(3, IN, seed=4)
    expected, results, start = MAKERS[name](float_linear())(x), [], threading.Barrier(6)

    def call():
        start.wait()
        results.append(layer(x))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(torch.equal(result, expected) for result in results)


def test_no_gradient_flows_and_none_that_is_wrong(name, layer):
    x = floats(3, IN).requires_grad_()
    assert not layer(x).requires_grad


@pytest.mark.parametrize("kernels_off", [False, True])
def test_a_checkpoint_means_the_same_to_every_kernel(monkeypatch, name, kernels_off):
    """Saved with this machine's kernels, loaded where there are none: the other half of every kernel's test."""
    layer = MAKERS[name](float_linear())
    x = floats(3, IN, seed=4)
    out = layer(x)
    state = layer.state_dict()
    if kernels_off:
        monkeypatch.setattr(linear_module, "int4_kernel", lambda weight: None)
        monkeypatch.setattr(linear_module, "int8_kernel", kernels.FloatMM)
        monkeypatch.setattr(linear_module, "int8_weight_kernel", kernels.Dequantize)
    fresh = MAKERS[name](float_linear())
    fresh.load_state_dict(state)
    assert torch.allclose(fresh(x), out, rtol=1e-4, atol=1e-3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"x must have 192 features.*\[2, 100\]"):
        DynamicQuantizedLinear.from_float(float_linear())(floats(2, 100))
    with pytest.raises(ValueError, match="weight must have 4 bits, got 3"):
        Int4WeightLinear.from_quantized(rtn_quantize(floats(8, 64), 3, 32))
    with pytest.raises(ValueError, match=r"weight must be int8.*float32"):
        DynamicQuantizedLinear(floats(4, 4), torch.ones(4))
    with pytest.raises(ValueError, match=r"weight_scale must have shape \[4\]"):
        DynamicQuantizedLinear(torch.zeros(4, 8, dtype=torch.int8), torch.ones(8))
    with pytest.raises(ValueError, match="weight must be floating point"):
        quantize_weight_int8(torch.zeros(4, 8, dtype=torch.int8))
