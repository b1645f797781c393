"""SmoothQuant changes nothing in float and helps where the integers lose."""

from __future__ import annotations

import copy

import pytest
import torch

from labsupport.lm.calibrate import stages
from labsupport.lm.config import LlamaConfig
from labsupport.lm.model import Llama
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.smoothquant import smooth_model, smoothing_scale, w8a8_error

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_model(num_kv_heads=2, seed=0):
    """Random, with outlier channels where real models have them: in the norms, the values and the MLP."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=8, num_kv_heads=num_kv_heads
    )
    model = Llama(config).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.input_layernorm.weight[3] = 40.0
            layer.post_attention_layernorm.weight[[5, 20]] = -30.0
            layer.self_attn.v_proj.weight[7] *= 30
            layer.mlp.up_proj.weight[11] *= 50
    return model


def windows(count=3, length=40, seed=1):
    return list(torch.randint(97, (count, length), generator=torch.Generator().manual_seed(seed)))


def w8a8(model):
    model = copy.deepcopy(model)
    for layer in model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name in PROJECTIONS:
                if hasattr(parent, name):
                    setattr(parent, name, DynamicQuantizedLinear.from_float(getattr(parent, name)))
    return model


@torch.no_grad()
def logits(model):
    return model(torch.stack(windows(seed=2)))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0, None])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 8])
def test_the_function_stays_the_same(alpha, num_kv_heads):
    model = make_model(num_kv_heads)
    before = copy.deepcopy(model.state_dict())
    smoothed = smooth_model(model, windows(), alpha)
    assert (logits(smoothed) - logits(model)).abs().max() < 1e-4 * logits(model).abs().max()
    changed = [key for key, value in smoothed.state_dict().items() if not torch.equal(value, before[key])]
    expected = {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"{name}.weight" for name in PROJECTIONS),
    }
    if alpha is not None:
        assert {".".join(key.split(".")[-2:]) for key in changed} == expected
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # the input is untouched


def test_the_ranges_are_those_of_equation_4():
    """What each channel was divided by is max|X_j|**alpha / max|W_j|**(1 - alpha)."""
    model = make_model(num_kv_heads=8)

    def ranges(model):
        return [
            (
                torch.cat([batch.flatten(0, -2) for batch in stage.inputs]).abs().amax(0),
                torch.cat([linear.weight for linear in stage.linears]).abs().amax(0),
            )
            for stage in stages(model, windows())
        ]

    with torch.no_grad():
        before, after = ranges(model), ranges(smooth_model(model, windows(), alpha=0.7))
    for (x, _), (x_after, w_after) in zip(before, after, strict=True):
        scale = x / x_after
        w_before = w_after / scale  # for q, k, v and gate, up not quite w: rows of v and up have been divided as well
        assert torch.allclose(scale, x**0.7 / w_before**0.3, rtol=1e-3)
        assert scale.max() > 2 * scale.min()
    for index in (1, 3, 5, 7):
        (x, w), (x_after, w_after) = before[index], after[index]
        assert torch.allclose(w_after, w * x / x_after, rtol=1e-3)
    even = torch.tensor([2.0, 0.1]), torch.tensor([0.5, 8.0])
    scale = smoothing_scale(*even, alpha=0.5)
    assert torch.allclose(even[0] / scale, even[1] * scale)


def test_dead_channels_are_left_alone():
    zero, one = torch.zeros(1), torch.ones(1)
    for alpha in (0.0, 0.5, 1.0):
        assert torch.equal(smoothing_scale(zero, one, alpha), one)
        assert torch.equal(smoothing_scale(one, zero, alpha), one)
    model = make_model()
    with torch.no_grad():
        model.layers[0].input_layernorm.weight[9] = 0
        model.layers[1].mlp.up_proj.weight[4] = 0
        model.layers[1].mlp.down_proj.weight[:, 6] = 0
    for alpha in (0.0, 0.5, 1.0, None):
        assert torch.isfinite(logits(smooth_model(model, windows(), alpha))).all()


@pytest.mark.parametrize("alpha", [0.5, None])
@pytest.mark.parametrize("num_kv_heads", [2, 8])
def test_w8a8_loses_less_after_smoothing(alpha, num_kv_heads):
    model = make_model(num_kv_heads)
    exact = logits(model)
    plain = (logits(w8a8(model)) - exact).norm()
    assert (logits(w8a8(smooth_model(model, windows(), alpha))) - exact).norm() < 0.7 * plain


def test_the_search_never_loses_to_no_smoothing_on_its_own_measure():
    model = make_model()
    smoothed = smooth_model(model, windows(), alpha=None)
    with torch.no_grad():
        pairs = zip(stages(model, windows()), stages(smoothed, windows()), strict=True)
        for before, after in pairs:
            errors = [
                w8a8_error(stage.sample(256), [linear.weight for linear in stage.linears], torch.ones(()))
                for stage in (before, after)
            ]
            assert errors[1] <= errors[0] * 1.02  # rows of up_proj and v_proj change once more, for the next stage


def test_w8a8_error_is_the_error_of_the_layer():
    model = make_model()
    with torch.no_grad():
        stage = next(iter(stages(model, windows())))
        x, weight = stage.sample(1000), stage.linears[0].weight
        exact, got = x @ weight.T, DynamicQuantizedLinear(*quantized(weight))(x)
        expected = ((exact - got).square().sum(1) / exact.square().sum(1)).mean()
        assert w8a8_error(x, [weight], torch.ones(64)) == pytest.approx(float(expected), rel=1e-3)


def quantized(weight):
    from labsupport.quantization.int8 import quantize_weight_int8

    return quantize_weight_int8(weight)


def test_bad_arguments_are_named():
    model = make_model()
    for alpha in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"alpha must lie in 0..1.*{alpha}"):
            smooth_model(model, windows(), alpha)
    with pytest.raises(ValueError, match="calibration must hold at least one"):
        smooth_model(model, [])


@pytest.mark.smollm2
@pytest.mark.slow
def test_smoothing_brings_w8a8_within_2_percent_of_float_on_smollm2():
    from labsupport.lm import corpus, load_lm, perplexity

    lm = load_lm("smollm2-135m")
    calibration = torch.tensor(lm.tokenizer.encode(corpus("calibration")))[: 8 * 512].view(8, 512)
    evaluation = torch.tensor(lm.tokenizer.encode(corpus("evaluation")))[: 4 * 512]
    exact = perplexity(lm.model, evaluation)
    plain = perplexity(w8a8(lm.model), evaluation)
    smoothed = perplexity(w8a8(smooth_model(lm.model, list(calibration), alpha=None)), evaluation)
    assert smoothed < plain
    assert smoothed < 1.02 * exact
