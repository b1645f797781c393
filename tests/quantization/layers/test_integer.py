"""All layers with integer weights: what they compute and hold, and that it survives saving, copying and moving."""

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
from linears import IN, OUT, act_order, calibrated, float_linear, floats

from labsupport.quantization.fast.int8 import FloatMM
from labsupport.quantization.fast.int8_weight import Dequantize
from labsupport.quantization.layers import dynamic, int4_weight, int8_weight, static
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear
from labsupport.quantization.layers.packed import QuantizedLinear
from labsupport.quantization.rtn import rtn_quantize


def int4(layer, **changes):
    return replace(rtn_quantize(layer.weight, 4, 64), **changes)


MAKERS = {
    "dynamic": DynamicQuantizedLinear.from_float,
    "dynamic, two passes": lambda layer: DynamicQuantizedLinear.from_float(layer, saturation_free=False),
    "static": calibrated,
    "int8": Int8WeightLinear.from_float,
    "int4": lambda layer: Int4WeightLinear(int4(layer), layer.bias),
    "int4 awq": lambda layer: Int4WeightLinear(int4(layer, input_scale=floats(IN, seed=9).exp()), layer.bias),
    "int4 act-order": lambda layer: Int4WeightLinear(act_order(int4(layer)), layer.bias),
    "int4, no kernel": lambda layer: Int4WeightLinear(rtn_quantize(layer.weight, 4, 20), layer.bias),
    "3 bits": lambda layer: QuantizedLinear(rtn_quantize(layer.weight, 3, 64), layer.bias),
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


def test_a_checkpoint_decides_what_the_layer_computes(name, layer):
    x = floats(3, IN, seed=4)
    layer(x)
    zeroed = {key: torch.zeros_like(value) for key, value in layer.state_dict().items()}
    for key in zeroed.keys() & {"scale", "input_scale"}:  # a scale of 0 is no scale
        zeroed[key] += 1
    layer.load_state_dict(zeroed)
    assert torch.equal(layer(x), torch.zeros(3, OUT))


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
    """Saved with this machine's kernels, loaded where there are none."""
    layer = MAKERS[name](float_linear())
    x = floats(3, IN, seed=4)
    out = layer(x)
    state = layer.state_dict()
    if kernels_off:
        monkeypatch.setattr(int4_weight, "int4_kernel", lambda weight, order=None: None)
        monkeypatch.setattr(dynamic, "int8_kernel", FloatMM)
        monkeypatch.setattr(static, "int8_kernel", FloatMM)
        monkeypatch.setattr(int8_weight, "int8_weight_kernel", Dequantize)
    fresh = MAKERS[name](float_linear())
    fresh.load_state_dict(state)
    assert torch.allclose(fresh(x), out, rtol=1e-4, atol=1e-3)
