"""`quantize_model`: any method of this chapter on every linear layer of a language model's blocks.

The methods differ in what they do at each stage (calibrate.py) of the model:

    rtn            round to nearest; calibration only serves the report
    gptq           quantize on inputs from the already quantized layers before; one Hessian for layers that share inputs
    awq            search a scale, fold it into what makes the inputs, clip, round; on quantized inputs as well
    int8_dynamic   int8 weights and activations, one activation scale a token
    int8_static    int8 weights and activations, one activation scale a layer, from the calibration's range

Embedding, norms and head stay as they are, unless ``head_bits`` is given.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm.auto import tqdm

from labsupport.lm.calibrate import NUM_STAGES, Stage, check_calibration, nmse, stages
from labsupport.numerics.checks import check_bits
from labsupport.numerics.hessian import HessianAccumulator
from labsupport.quantization.awq import InputStats, clip_weight, search_scale
from labsupport.quantization.gptq import gptq_quantize
from labsupport.quantization.linear import (
    DynamicQuantizedLinear,
    Int4WeightLinear,
    Int8WeightLinear,
    QuantizedLinear,
    StaticQuantizedLinear,
)
from labsupport.quantization.qweight import QuantizedWeight, resolve_group_size, round_scale
from labsupport.quantization.report import LayerReport, QuantizationReport
from labsupport.quantization.rtn import rtn_quantize
from labsupport.quantization.smoothquant import smooth_head, smooth_model

ERROR_TOKENS = 256  # of each stage, for the report's errors
_HEAD_WINDOWS = 4  # of calibration, to smooth the head with


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    calibration: Sequence[Int64[Tensor, " time"]],
    method: str = "gptq",
    bits: int = 4,
    group_size: int | None = 64,
    *,
    symmetric: bool = False,
    act_order: bool = False,
    static_groups: bool | None = None,
    damping: float = 0.01,
    clip: bool = True,
    smooth: bool | float = False,
    head_bits: int | None = None,
    progress: bool = True,
) -> nn.Module:
    """A new model with quantized linear layers; ``model`` is not changed.

    calibration: windows of token ids of any length, for all methods. SmolLM2 wants 16 windows of 512 tokens or more.
    method: "rtn" | "gptq" | "awq" | "int8_dynamic" | "int8_static", see above.
    bits, group_size, symmetric: the grid of rtn, gptq and awq (never symmetric); int8_* have 8 bits, one scale a row.
    act_order, static_groups, damping: gptq, see `gptq_quantize`. clip: awq, search each group's range too.
    smooth: int8_*, SmoothQuant first: its alpha, or True to search the best for each layer.
    head_bits: 8 gives the head int8 weights of its own (the embedding stays): decoding reads it for every token.

    The result's ``quantization_report`` is a `QuantizationReport`. Its weights are in the state dict, which loads into
    another model quantized the same way.

    Raises:
        ValueError: no such method; calibration that is not a list of token tensors; a model whose blocks have no
            nn.Linear at the places of a Llama; options outside of their range.
    """
    _check_options(method, bits, smooth, head_bits)
    llama: Any = model
    windows = check_calibration(calibration, llama.config.vocab_size)
    for layer in llama.layers:
        _check_layer(layer)
    start = time.perf_counter()
    quantized = copy.deepcopy(llama)
    if smooth is not False:
        quantized = smooth_model(quantized, windows, alpha=None if smooth is True else smooth)
    options = _Options(bits, group_size, symmetric, act_order, static_groups, damping, clip)
    bar = tqdm(total=NUM_STAGES * len(llama.layers), desc=method, unit="stage", disable=not progress)
    with bar:
        watched = _watched(stages(quantized, _windows_for(method, windows)), bar)
        replacements = list(_METHODS[method](watched, options))

    report = QuantizationReport(method, 8 if method.startswith("int8") else bits, _bytes(model))
    for name, module, error in replacements:
        linear = quantized.get_submodule(name)
        report.layers.append(LayerReport(name, tuple(linear.weight.shape), _bytes(linear), _bytes(module), error))
        parent, _, child = name.rpartition(".")
        setattr(quantized.get_submodule(parent), child, module)
    if head_bits is not None:
        if smooth is not False:
            smooth_head(quantized, windows[:_HEAD_WINDOWS], None if smooth is True else smooth)
        head = DynamicQuantizedLinear if method == "int8_dynamic" else Int8WeightLinear
        quantized.lm_head = head.from_float(quantized.lm_head)
    report.bytes_after = _bytes(quantized)
    report.seconds = time.perf_counter() - start
    quantized.quantization_report = report
    return quantized


# ------------------------------------------------------------------------------------------------ the methods


@dataclass(frozen=True)
class _Options:
    bits: int
    group_size: int | None
    symmetric: bool
    act_order: bool
    static_groups: bool | None
    damping: float
    clip: bool


Replacement = tuple[str, Any, float]  # name of a linear layer, the module in its place, the error of its output


def _rtn(model_stages: Iterator[Stage], options: _Options) -> Iterator[Replacement]:
    for stage in model_stages:
        sample = stage.sample(ERROR_TOKENS)
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            weight = rtn_quantize(linear.weight, options.bits, options.group_size, options.symmetric)
            yield name, _packed(weight, linear), _error(sample, linear, weight.dequantize())


def _gptq(model_stages: Iterator[Stage], options: _Options) -> Iterator[Replacement]:
    for stage in model_stages:
        accumulator = HessianAccumulator(stage.inputs[0].shape[-1], stage.inputs[0].device)
        for batch in stage.inputs:
            accumulator.add(batch)
        sample, linears = stage.sample(ERROR_TOKENS), stage.linears
        # Rows do not influence one another, so layers that share a Hessian are one weight.
        together = gptq_quantize(
            torch.cat([linear.weight for linear in linears]), accumulator.hessian, options.bits, options.group_size,
            options.symmetric, options.act_order, options.damping, static_groups=options.static_groups,
        )  # fmt: skip
        parts = _split_rows(together, [linear.out_features for linear in linears])
        for name, linear, weight in zip(stage.full_names, linears, parts, strict=True):
            dequantized = weight.dequantize()
            error = _error(sample, linear, dequantized)
            linear.weight.copy_(dequantized)  # what the following stages are to cope with
            yield name, _packed(weight, linear), error


def _awq(model_stages: Iterator[Stage], options: _Options) -> Iterator[Replacement]:
    # Of this layer: down_proj's scale, the last one found, still divides rows of up_proj.
    done: dict[str, tuple[QuantizedWeight, nn.Linear, float]] = {}
    for stage in model_stages:
        stats = InputStats.of(stage.inputs)
        group_size = resolve_group_size(options.group_size, len(stats.mean_abs))
        source = _source(stage)
        if source is not None:
            together = torch.cat([linear.weight for linear in stage.linears]).float()
            scale = search_scale(together, stats, options.bits, group_size).scale
            stats = stats.scaled(scale)
            _fold(stage, source, scale)
            if source in done:
                weight, linear, error = done[source]
                done[source] = _divide_rows(weight, scale), linear, error
        sample = stage.sample(ERROR_TOKENS)
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            wanted = linear.weight.float()
            # Clipping q and k for their own errors does not serve the attention scores, where the two meet.
            clip = options.clip and not name.endswith(("q_proj", "k_proj"))
            clipped = clip_weight(wanted, stats, options.bits, group_size) if clip else wanted
            weight = rtn_quantize(clipped, options.bits, group_size)
            dequantized = weight.dequantize()
            done[name] = weight, linear, _error(sample, linear, dequantized)
            linear.weight.copy_(dequantized)
        if "mlp.down_proj" in stage.names:
            for name, (weight, linear, error) in done.items():
                yield name, _packed(weight, linear), error
            done.clear()


def _int8_dynamic(model_stages: Iterator[Stage], options: _Options) -> Iterator[Replacement]:
    for stage in model_stages:
        sample = stage.sample(ERROR_TOKENS)
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            module = DynamicQuantizedLinear.from_float(linear)
            yield name, module, nmse(module(sample), linear(sample))


def _int8_static(model_stages: Iterator[Stage], options: _Options) -> Iterator[Replacement]:
    for stage in model_stages:
        sample = stage.sample(ERROR_TOKENS)
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            module = StaticQuantizedLinear.from_float(linear)
            for batch in stage.inputs:
                module.observe(batch)
            yield name, module, nmse(module(sample), linear(sample))


_METHODS: dict[str, Callable[[Iterator[Stage], _Options], Iterator[Replacement]]] = {
    "rtn": _rtn, "gptq": _gptq, "awq": _awq, "int8_dynamic": _int8_dynamic, "int8_static": _int8_static,
}  # fmt: skip


def _source(stage: Stage) -> str | None:
    """What makes the stage's inputs, which can take a scale; None where a channel has several readers."""
    attention = stage.layer.self_attn
    if "self_attn.o_proj" in stage.names and attention.num_kv_heads != attention.num_heads:
        return None
    sources = {
        "self_attn.q_proj": "input_layernorm", "self_attn.o_proj": "self_attn.v_proj",
        "mlp.gate_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj",
    }  # fmt: skip
    return f"layers.{stage.layer_index}.{sources[stage.names[0]]}"


def _fold(stage: Stage, source: str, scale: Float[Tensor, " in"]) -> None:
    """Multiply the stage's columns by ``scale`` and divide what makes their inputs: the model computes the same."""
    before = stage.layer.get_submodule(source.split(".", 2)[2])
    before.weight.div_(scale[:, None] if before.weight.dim() == 2 else scale)
    if getattr(before, "bias", None) is not None:
        before.bias.div_(scale)
    for linear in stage.linears:
        linear.weight.mul_(scale)
    stage.divide_inputs(scale)


def _divide_rows(weight: QuantizedWeight, scale: Float[Tensor, " out"]) -> QuantizedWeight:
    """The same codes on finer or coarser grids, again of float16 numbers."""
    divided = round_scale(weight.scale.float() / scale[:, None])
    return QuantizedWeight.from_codes(weight.codes(), divided, weight.zero_point, weight.bits, weight.group_size)


def _packed(weight: QuantizedWeight, linear: nn.Linear) -> nn.Module:
    """The module with the fastest kernel for this weight."""
    if weight.bits == 4:
        return Int4WeightLinear(weight, linear.bias)
    if weight.bits == 8 and weight.scale.shape[1] == 1 and (weight.zero_point == 128).all():
        signed = (weight.codes().to(torch.int16) - 128).to(torch.int8)
        return Int8WeightLinear(signed, weight.scale.float().squeeze(1), linear.bias)
    return QuantizedLinear(weight, linear.bias)


def _split_rows(weight: QuantizedWeight, sizes: list[int]) -> list[QuantizedWeight]:
    tensors = weight.codes(), weight.scale, weight.zero_point
    return [
        QuantizedWeight.from_codes(codes, scale, zero_point, weight.bits, weight.group_size, weight.group_index)
        for codes, scale, zero_point in zip(*(tensor.split(sizes) for tensor in tensors), strict=True)
    ]


def _error(sample: Tensor, linear: nn.Linear, dequantized: Tensor) -> float:
    """Of the weights alone: the inputs are the same, and so is any bias."""
    return nmse(F.linear(sample, dequantized.to(sample.dtype)), F.linear(sample, linear.weight))


# ------------------------------------------------------------------------------------------------ bookkeeping


def _windows_for(method: str, windows: list[Tensor]) -> list[Tensor]:
    """All of them, except where they only serve the report's errors."""
    if method not in ("rtn", "int8_dynamic"):
        return windows
    kept, tokens = [], 0
    for window in windows:
        if tokens >= ERROR_TOKENS:
            break
        kept.append(window)
        tokens += len(window)
    return kept


def _watched(model_stages: Iterator[Stage], bar: Any) -> Iterator[Stage]:
    for stage in model_stages:
        yield stage
        bar.update()


def _check_options(method: str, bits: int, smooth: bool | float, head_bits: int | None) -> None:
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}; got {method!r}")
    check_bits(bits)
    if smooth is not False and not method.startswith("int8"):
        raise ValueError(f"smooth serves methods that quantize activations (int8_*); got method {method!r}")
    if head_bits not in (None, 8):
        raise ValueError(f"head_bits must be 8 or None; got {head_bits!r}")


def _check_layer(layer: nn.Module) -> None:
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        _check_linear(f"self_attn.{name}", getattr(layer.self_attn, name, None))
    for name in ("gate_proj", "up_proj", "down_proj"):
        _check_linear(f"mlp.{name}", getattr(layer.mlp, name, None))


def _check_linear(name: str, module: object) -> None:
    if not isinstance(module, nn.Linear):
        kind = type(module).__name__
        raise ValueError(f"model must have an nn.Linear as {name} of each layer, got {kind} (quantized already?)")


def _bytes(module: nn.Module) -> int:
    """Of all parameters, a tied one counted once, and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
