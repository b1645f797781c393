"""quantize_model on a small Llama: every method, and that nothing but the linear layers' weights is touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labsupport.lm import Llama, LlamaConfig, perplexity
from labsupport.lm.calibrate import batch_windows, stages
from labsupport.numerics.hessian import HessianAccumulator
from labsupport.quantization.awq import InputStats, clip_weight, search_scale
from labsupport.quantization.gptq import gptq_quantize
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear
from labsupport.quantization.layers.packed import QuantizedLinear
from labsupport.quantization.layers.static import StaticQuantizedLinear
from labsupport.quantization.model import quantize_model
from labsupport.quantization.rtn import rtn_quantize

quantize: Any = quantize_model  # Any: what the tests look at differs from module to module

METHODS = ("rtn", "gptq", "awq", "int8_dynamic", "int8_static")
PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def build(num_kv_heads: int = 2, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=60, hidden_size=48, intermediate_size=80, num_layers=3, num_heads=4, num_kv_heads=num_kv_heads
    )
    model: Any = Llama(config).eval()
    with torch.no_grad():  # channels of different strength, as trained models have them
        for layer in model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.copy_(torch.rand(48) ** 2 * 3 + 0.1)
        model.embed_tokens.weight.mul_(torch.linspace(0.2, 2, 48))
    return model


def windows(*lengths: int, seed: int = 1) -> list[Tensor]:
    """Something like text: few words, often repeated."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 60, (12, 4), generator=torch.Generator().manual_seed(0))
    draw = lambda n: words[torch.randint(0, 12, (n // 4 + 1,), generator=generator)].flatten()[:n]  # noqa: E731
    return [draw(length) for length in lengths]


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


@pytest.fixture(scope="module")
def quantized(model: Any) -> dict[str, Any]:
    calibration = windows(64, 64, 64, 31, 5)
    return {method: quantize(model, calibration, method, 4, 16, progress=False) for method in METHODS}


def dequantized_copy(model: Any, quantized: Any) -> Any:
    """The float model (with ``quantized``'s norms) on the weights that the integers stand for."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if isinstance(module, QuantizedLinear):
                result.get_submodule(name).weight.copy_(module.dequantize())
            elif name.endswith("layernorm"):
                result.get_submodule(name).weight.copy_(module.weight)
    return result


def logit_error(quantized: Any, model: Any, tokens: Tensor) -> float:
    with torch.no_grad():
        wanted = model(tokens)
        return float((quantized(tokens) - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("method", METHODS)
def test_the_model_given_is_not_changed(method: str) -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())
    modules = [type(module) for module in model.modules()]
    result = quantize(model, windows(40, 40), method, 4, 16, progress=False)
    after = model.state_dict()
    assert result is not model and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modules == [type(module) for module in model.modules()]
    shared = {p.data_ptr() for p in result.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared


@pytest.mark.parametrize("method", METHODS)
def test_every_linear_layer_of_the_blocks_and_nothing_else(method: str, quantized: dict[str, Any]) -> None:
    kind = {"int8_dynamic": DynamicQuantizedLinear, "int8_static": StaticQuantizedLinear}.get(method, Int4WeightLinear)
    result = quantized[method]
    for layer in result.layers:
        assert all(type(layer.get_submodule(name)) is kind for name in PROJECTIONS)
    assert type(result.lm_head) is nn.Linear and result.lm_head.weight is result.embed_tokens.weight
    assert not any("weight" in name and "proj" in name for name, _ in result.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_it_still_computes_nearly_the_same(method: str, quantized: dict[str, Any], model: Any) -> None:
    tokens = torch.stack(windows(50, 50, seed=2))
    error = logit_error(quantized[method], model, tokens)
    assert 0 < error < (0.002 if method.startswith("int8") else 0.05)


def test_gptq_and_awq_lose_less_than_rounding(quantized: dict[str, Any], model: Any) -> None:
    tokens = torch.stack(windows(50, 50, 50, 50, seed=2))
    error = {method: logit_error(quantized[method], model, tokens) for method in METHODS}
    assert error["gptq"] < 0.7 * error["rtn"] and error["awq"] < 0.9 * error["rtn"]


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("bits", [3, 4])
def test_perplexity_is_that_of_the_dequantized_weights(method: str, bits: int, model: Any) -> None:
    result = quantize(model, windows(64, 64), method, bits, 16, progress=False)
    tokens = windows(600)[0]
    expected = perplexity(dequantized_copy(model, result), tokens, seq_len=300)
    assert perplexity(result, tokens, seq_len=300) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_awq_scales_are_folded_into_what_makes_the_inputs(num_kv_heads: int) -> None:
    """At 8 bits rounding is negligible, so a scale that is not divided out again would show."""
    model = build(num_kv_heads)
    result = quantize(model, windows(64, 64), "awq", 8, 16, progress=False)
    assert logit_error(result, model, torch.stack(windows(50, 50, seed=2))) < 1e-4
    layer, before = result.layers[0], model.layers[0]
    assert not torch.equal(layer.input_layernorm.weight, before.input_layernorm.weight)
    assert not torch.equal(layer.post_attention_layernorm.weight, before.post_attention_layernorm.weight)
    assert layer.self_attn.q_proj.input_scale is None

    def ratio(name: str) -> Tensor:  # row by row; 1 where nothing was folded in
        return layer.get_submodule(name).dequantize().norm(dim=1) / before.get_submodule(name).weight.norm(dim=1)

    up = ratio("mlp.up_proj") / ratio("mlp.gate_proj").median()
    assert up.max() / up.min() > 1.2
    value = ratio("self_attn.v_proj")
    # A value head that several query heads read cannot take a scale for each of them.
    assert (value.max() / value.min() > 1.2) == (num_kv_heads == 4)


def test_gptq_takes_inputs_from_the_quantized_layers_before(model: Any) -> None:
    """The weights equal those of the algorithm written out: every stage sees all earlier stages quantized."""
    calibration = windows(64, 64, 30)
    result = quantize(model, calibration, "gptq", 3, 16, progress=False)
    expected = copy.deepcopy(model)
    inputs: dict[str, Tensor] = {}
    for index, layer in enumerate(expected.layers):
        for name in PROJECTIONS:
            linear: Any = layer.get_submodule(name)
            accumulator = HessianAccumulator(linear.in_features)
            hook = linear.register_forward_pre_hook(lambda _, args, to=accumulator: to.add(args[0]))
            with torch.no_grad():
                for window in calibration:
                    expected(window[None])
            hook.remove()
            inputs[name] = accumulator.hessian
            together = {"k_proj": "self_attn.q_proj", "v_proj": "self_attn.q_proj", "up_proj": "mlp.gate_proj"}
            first = together.get(name.split(".")[1], name)  # q, k and v were quantized on one Hessian
            weight = gptq_quantize(linear.weight, inputs[first], 3, 16).dequantize()
            got = result.layers[index].get_submodule(name).dequantize()
            assert torch.isclose(got, weight, atol=1e-4).float().mean() > 0.95
            with torch.no_grad():
                linear.weight.copy_(got)


def test_sequential_inputs_beat_those_of_the_float_model() -> None:
    errors = {"sequential": 0.0, "independent": 0.0}
    for seed in range(3):
        model = build(seed=seed)
        calibration = windows(*[64] * 16, seed=seed)
        sequential = quantize(model, calibration, "gptq", 2, 16, progress=False)
        independent = copy.deepcopy(model)
        for stage in stages(model, calibration):
            hessian = HessianAccumulator(stage.in_features)
            for batch in stage.inputs:
                hessian.add(batch)
            for name, linear in zip(stage.full_names, stage.linears, strict=True):
                weight = gptq_quantize(linear.weight, hessian.hessian, 2, 16).dequantize()
                independent.get_submodule(name).weight.data.copy_(weight)
        tokens = torch.stack(windows(*[60] * 8, seed=seed + 50))
        errors["sequential"] += logit_error(sequential, model, tokens)
        errors["independent"] += logit_error(independent, model, tokens)
    assert errors["sequential"] < 0.97 * errors["independent"]


def test_calibration_matters_where_it_should(model: Any) -> None:
    def codes(method: str, seed: int) -> Tensor:
        calibration = [w % (10 + 25 * seed) for w in windows(64, seed=seed)]
        return (
            quantize(model, calibration, method, 4, 16, progress=False)
            .layers[0]
            .mlp.down_proj.quantized_weight()
            .codes()
        )

    assert not torch.equal(codes("gptq", 1), codes("gptq", 2)) and not torch.equal(codes("awq", 1), codes("awq", 2))
    assert torch.equal(codes("rtn", 1), codes("rtn", 2))
    expected = rtn_quantize(model.layers[0].mlp.down_proj.weight, 4, 16).codes()
    assert torch.equal(codes("rtn", 1), expected)


@pytest.mark.parametrize(
    "options", [{"symmetric": True}, {"act_order": True}, {"act_order": True, "static_groups": False}]
)
def test_options_reach_gptq(options: dict[str, bool], model: Any) -> None:
    result = quantize(model, windows(64), "gptq", 4, 16, progress=False, **options)
    weight = result.layers[0].self_attn.q_proj.quantized_weight()
    assert (weight.zero_point == 8).all().item() == options.get("symmetric", False)
    assert (weight.group_index is not None) == (options.get("static_groups") is False)
    first = next(iter(stages(model, windows(64))))
    accumulator = HessianAccumulator(48)
    accumulator.add(next(first.inputs))
    expected = gptq_quantize(first.linears[0].weight, accumulator.hessian, 4, 16, **options)
    assert torch.isclose(weight.dequantize(), expected.dequantize(), atol=1e-4).float().mean() > 0.99


def test_clipping_can_be_left_out(model: Any) -> None:
    plain, clipped = (quantize(model, windows(64), "awq", 3, 16, clip=clip, progress=False) for clip in (False, True))
    q, o = "layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj"
    assert torch.equal(plain.get_submodule(q).dequantize(), clipped.get_submodule(q).dequantize())
    assert (plain.get_submodule(o).scale >= clipped.get_submodule(o).scale).all()
    assert not torch.equal(plain.get_submodule(o).scale, clipped.get_submodule(o).scale)


def test_q_k_and_v_share_the_scale_that_their_norm_gives_up(model: Any) -> None:
    result = quantize(model, windows(64), "awq", 4, 16, progress=False).layers[0]
    stage = next(iter(stages(model, windows(64))))
    stats = InputStats.of(stage.inputs)
    scale = search_scale(torch.cat([linear.weight for linear in stage.linears]), stats, 4, 16).scale
    assert scale.max() > 1.2
    assert torch.allclose(result.input_layernorm.weight, model.layers[0].input_layernorm.weight / scale)
    for name, linear in zip(("q_proj", "k_proj"), stage.linears, strict=False):
        expected = rtn_quantize(linear.weight * scale, 4, 16)
        assert torch.equal(result.self_attn.get_submodule(name).quantized_weight().codes(), expected.codes())
    clipped = rtn_quantize(clip_weight(stage.linears[2].weight * scale, stats.scaled(scale), 4, 16), 4, 16)
    assert torch.equal(result.self_attn.v_proj.quantized_weight().codes(), clipped.codes())


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_round_trip(method: str, quantized: dict[str, Any]) -> None:
    tokens = torch.stack(windows(50, seed=2))
    expected = quantized[method](tokens)
    skeleton = quantize(build(seed=9), windows(20), method, 4, 16, progress=False)
    assert not torch.allclose(skeleton(tokens), expected, atol=1e-3)
    missing = skeleton.load_state_dict(quantized[method].state_dict())
    assert not missing.missing_keys and not missing.unexpected_keys
    assert torch.allclose(skeleton(tokens), expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_report(method: str, quantized: dict[str, Any], model: Any) -> None:
    report = quantized[method].quantization_report
    assert (report.method, report.bits) == (method, 8 if method.startswith("int8") else 4)
    assert [layer.name for layer in report.layers] == [f"layers.{i}.{name}" for i in range(3) for name in PROJECTIONS]
    before = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert report.bytes_before == before
    saved = sum(layer.bytes_before - layer.bytes_after for layer in report.layers)
    assert report.bytes_after == before - saved
    if not method.startswith("int8"):
        assert report.layers[0].bits_per_weight == pytest.approx(4 + 20 / 16)
        assert report.bits_per_weight == pytest.approx(4 + 20 / 16)
    assert report.seconds > 0
    assert all(0 < error < 0.1 for error in report.error.values())
    frame = report.to_frame()
    assert frame.shape == (21, 5) and frame.loc["layers.2.mlp.up_proj", "shape"] == (80, 48)
    assert f"{method}: " in str(report) and "21 layers" in str(report)


def test_the_reports_error_is_that_of_the_layer(model: Any) -> None:
    """Few enough tokens that the sample holds all of them, in the first layer, which has no quantized one before it."""
    calibration = windows(64, 64)
    report = quantize(model, calibration, "gptq", 3, 16, progress=False).quantization_report
    stage = next(iter(stages(model, calibration)))
    x = torch.cat(list(stage.inputs)).flatten(0, 1)
    hessian = HessianAccumulator(48)
    hessian.add(x)
    weight = stage.linears[0].weight
    moved = gptq_quantize(weight, hessian.hessian, 3, 16).dequantize() - weight
    expected = ((x @ moved.T).square().sum() / (x @ weight.T).square().sum()).item()
    assert report.error["layers.0.self_attn.q_proj"] == pytest.approx(expected, rel=0.02)


def test_int8_dynamic_and_static(model: Any) -> None:
    calibration = windows(64, 64)
    tokens = torch.stack(windows(60, seed=3))
    dynamic, static = (quantize(model, calibration, f"int8_{kind}", progress=False) for kind in ("dynamic", "static"))
    assert logit_error(dynamic, model, tokens) < logit_error(static, model, tokens)
    seen = torch.cat([batch.flatten() for batch in next(iter(stages(model, calibration))).inputs])
    scale = static.layers[0].self_attn.q_proj.input_scale
    assert float(scale) == pytest.approx(float(seen.max() - seen.min()) / 255, rel=1e-3)


@pytest.mark.parametrize("smooth", [True, 0.5])
def test_smoothing_first(smooth: bool | float, model: Any) -> None:
    result = quantize(model, windows(64, 64), "int8_dynamic", smooth=smooth, progress=False)
    tokens = torch.stack(windows(60, seed=3))
    assert logit_error(result, model, tokens) < 0.002
    assert not torch.equal(result.layers[0].input_layernorm.weight, model.layers[0].input_layernorm.weight)


@pytest.mark.parametrize(("method", "kind"), [("gptq", Int8WeightLinear), ("int8_dynamic", DynamicQuantizedLinear)])
def test_head_bits(method: str, kind: type, model: Any, quantized: dict[str, Any]) -> None:
    result = quantize(model, windows(64), method, 4, 16, head_bits=8, progress=False)
    assert type(result.lm_head) is kind and type(result.embed_tokens) is nn.Embedding
    assert torch.equal(result.embed_tokens.weight, model.embed_tokens.weight)
    extra = result.quantization_report.bytes_after - quantized[method].quantization_report.bytes_after
    assert extra == 60 * 48 + 60 * 4
    assert logit_error(result, model, torch.stack(windows(60, seed=3))) < 0.05


def test_a_model_in_training_mode_or_half_precision() -> None:
    model = build().train().bfloat16()
    for method in METHODS:
        result = quantize(model, windows(32), method, 4, 16, progress=False)
        assert torch.isfinite(result(windows(20)[0][None])).all() and result.training


def test_windows_of_one_length_run_together() -> None:
    lengths = [[len(row) for row in batch] for batch in batch_windows(windows(5, 5, 5, 3, 3, 9, 5), batch_tokens=12)]
    assert lengths == [[5, 5], [5], [3, 3], [9], [5]]


def test_stages_give_what_the_layers_read(model: Any) -> None:
    calibration = windows(20, 20, 7)
    read: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: read.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for name, module in model.named_modules()
        if name.endswith("_proj")
    ]
    with torch.no_grad():
        for window in calibration:
            model(window[None])
    for hook in hooks:
        hook.remove()
    for stage in stages(model, calibration):
        got = torch.cat([batch.flatten(0, -2) for batch in stage.inputs])
        for name in stage.full_names:
            assert torch.allclose(got, torch.cat(read[name]), atol=1e-5)
        assert len(stage.sample(10)) <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method must be one of rtn, gptq, awq, int8_dynamic, int8_static; got 'magic'"),
        ({"bits": 1}, "bits must be an integer from 2 to 8"),
        ({"head_bits": 4}, "head_bits must be 8 or None"),
        ({"smooth": 0.5}, "smooth is for methods that quantize activations"),
        ({"calibration": []}, "calibration must hold at least one window"),
        (
            {"calibration": torch.zeros(2, 8, dtype=torch.int64)},
            "calibration must be a list of 1-D token tensors, got Tensor",
        ),
        ({"calibration": [[1, 2, 3]]}, r"calibration\[0\] must be a 1-D int64 tensor.*got list"),
        ({"calibration": [torch.zeros(4, dtype=torch.int32)]}, r"calibration\[0\] must be a 1-D int64.*int32"),
        ({"calibration": [torch.zeros(1, 4, dtype=torch.int64)]}, r"calibration\[0\] must be a 1-D int64.*\[1, 4\]"),
        (
            {"calibration": [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]},
            r"calibration\[1\] must be.*at least one token",
        ),
        ({"calibration": [torch.tensor([1, 60])]}, r"calibration\[0\] must hold ids in 0..59, got 1..60"),
        ({"calibration": [torch.tensor([-1, 5])]}, r"calibration\[0\] must hold ids in 0..59, got -1..5"),
    ],
)
def test_bad_input(change: dict, message: str, model: Any) -> None:
    arguments = {"calibration": windows(10), "method": "gptq", "progress": False} | change
    with pytest.raises(ValueError, match=message):
        quantize(model, **arguments)


def test_a_quantized_model_is_refused(quantized: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"nn.Linear as self_attn.q_proj of each layer, got Int4WeightLinear"):
        quantize(quantized["rtn"], windows(10), progress=False)


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_perplexity_within_the_reference() -> None:
    """Four windows of text keep it short: an ordering with margins. benchmarks/quantization.py measures the table."""
    from labsupport.lm import corpus, load_lm

    lm = load_lm("smollm2-135m", verbose=False)
    tokens = {part: torch.tensor(lm.tokenizer.encode(corpus(part))) for part in ("calibration", "evaluation")}
    calibration = list(tokens["calibration"][: 8 * 512].view(8, 512))
    evaluation = tokens["evaluation"][: 4 * 512]
    exact = perplexity(lm.model, evaluation)
    found = {
        m: perplexity(quantize(lm.model, calibration, m, 3, progress=False), evaluation) for m in ("rtn", "gptq", "awq")
    }
    assert exact < found["gptq"] < 0.6 * found["rtn"] and exact < found["awq"] < 0.6 * found["rtn"]
