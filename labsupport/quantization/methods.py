"""What each method of `quantize_model` does at each stage (lm/calibrate.py) of the model:

rtn            round to nearest; calibration only serves the report
gptq           quantize on inputs from the already quantized layers before; one Hessian for layers that share inputs
awq            search a scale, fold it into what makes the inputs, clip, round; also on quantized inputs
int8_dynamic   int8 weights and activations, one activation scale per token
int8_static    int8 weights and activations, one activation scale per layer, from the calibration's range
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labsupport.lm.calibrate import Stage, squared_sums
from labsupport.numerics.hessian import AllZeros, HessianAccumulator
from labsupport.quantization.awq import InputStatsAccumulator, clip_weight, search_scale
from labsupport.quantization.fold import fold, source_name
from labsupport.quantization.gptq import gptq_quantize
from labsupport.quantization.layers.choice import linear_for
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.static import StaticQuantizedLinear
from labsupport.quantization.observers import MinMaxObserver
from labsupport.quantization.qweight import QuantizedWeight, resolve_group_size
from labsupport.quantization.rtn import rtn_quantize

ERROR_TOKENS = 256  # of each stage, for the report's errors


@dataclass(frozen=True)
class MethodOptions:
    """The options of `quantize_model` that methods read."""

    bits: int
    group_size: int | None
    symmetric: bool
    act_order: bool
    static_groups: bool | None
    damping: float
    clip: bool


# The name of a linear layer, the module to replace it, and the error of its output: `squared_sums`, read at the end.
Replacement = tuple[str, Any, Tensor]


def _rtn(model_stages: Iterable[Stage], options: MethodOptions) -> Iterator[Replacement]:
    for stage in model_stages:
        sample = stage.sample(ERROR_TOKENS)
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            weight = rtn_quantize(linear.weight, options.bits, options.group_size, options.symmetric, look=False)
            yield name, linear_for(weight, linear.bias), _error(sample, linear, weight.dequantize())


def _gptq(model_stages: Iterable[Stage], options: MethodOptions) -> Iterator[Replacement]:
    for stage in model_stages:
        linears = stage.linears
        accumulator = HessianAccumulator(stage.in_features, linears[0].weight.device)
        sample = stage.read(accumulator.add, ERROR_TOKENS)
        # Rows do not influence one another, so layers that share a Hessian are one weight.
        weights, hessian = torch.cat([linear.weight for linear in linears]), accumulator.hessian
        try:
            together = gptq_quantize(
                weights, hessian, options.bits, options.group_size, options.symmetric, options.act_order,
                options.damping, static_groups=options.static_groups,
            )  # fmt: skip
        except AllZeros:
            names = ", ".join(stage.full_names)
            warnings.warn(f"all inputs of {names} are zero in the calibration: rounded to nearest", stacklevel=3)
            together = rtn_quantize(weights, options.bits, options.group_size, options.symmetric)
        rows = [linear.out_features for linear in linears]
        parts = zip(together.split_rows(rows), together.dequantize().split(rows), strict=True)
        for name, linear, (weight, dequantized) in zip(stage.full_names, linears, parts, strict=True):
            error = _error(sample, linear, dequantized)
            linear.weight.copy_(dequantized)  # so that later stages compensate for it
            yield name, linear_for(weight, linear.bias), error


def _awq(model_stages: Iterable[Stage], options: MethodOptions) -> Iterator[Replacement]:
    # Results of one decoder layer, held back: the last scale, down_proj's, still divides rows of up_proj.
    done: dict[str, tuple[QuantizedWeight, nn.Linear, Tensor]] = {}
    for stage in model_stages:
        accumulator = InputStatsAccumulator(stage.in_features, stage.linears[0].weight.device)
        sample = stage.read(accumulator.add, ERROR_TOKENS)
        stats, group_size = accumulator.stats, resolve_group_size(options.group_size, stage.in_features)
        if not _values_are_shared(stage):
            together = torch.cat([linear.weight for linear in stage.linears]).float()
            scale = search_scale(together, stats, options.bits, group_size).scale
            stats, sample = stats.scaled(scale), (sample / scale).to(sample.dtype)
            fold(stage, scale)
            if (source := source_name(stage)) in done:  # v_proj or up_proj, quantized a moment ago
                weight, linear, error = done[source]
                done[source] = weight.divide_rows(scale), linear, error
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            wanted = linear.weight.float()
            # Clipping q and k by their own errors does not help the attention scores, in which the two are multiplied.
            clip = options.clip and not name.endswith(("q_proj", "k_proj"))
            clipped = clip_weight(wanted, stats, options.bits, group_size) if clip else wanted
            weight = rtn_quantize(clipped, options.bits, group_size, look=False)
            dequantized = weight.dequantize()
            done[name] = weight, linear, _error(sample, linear, dequantized)
            linear.weight.copy_(dequantized)
        if "mlp.down_proj" in stage.names:
            for name, (weight, linear, error) in done.items():
                yield name, linear_for(weight, linear.bias), error
            done.clear()


def _int8_dynamic(model_stages: Iterable[Stage], options: MethodOptions) -> Iterator[Replacement]:
    for stage in model_stages:
        sample = stage.sample(ERROR_TOKENS)
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            module = DynamicQuantizedLinear.from_float(linear, look=False)
            yield name, module, squared_sums(module(sample), linear(sample))


def _int8_static(model_stages: Iterable[Stage], options: MethodOptions) -> Iterator[Replacement]:
    for stage in model_stages:
        observer = MinMaxObserver()  # layers that read the same inputs see the same range
        sample = stage.read(observer.take, ERROR_TOKENS)  # `inputs` looks for what is not finite
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            module = StaticQuantizedLinear.from_float(linear, observer.qparams(), copy.copy(observer), look=False)
            yield name, module, squared_sums(module(sample), linear(sample))


METHODS: dict[str, Callable[[Iterable[Stage], MethodOptions], Iterator[Replacement]]] = {
    "rtn": _rtn, "gptq": _gptq, "awq": _awq, "int8_dynamic": _int8_dynamic, "int8_static": _int8_static,
}  # fmt: skip


def _values_are_shared(stage: Stage) -> bool:
    """Grouped-query attention: a row of v_proj feeds several channels of o_proj, which would need one scale each."""
    attention = stage.layer.self_attn
    return "self_attn.o_proj" in stage.names and attention.num_kv_heads != attention.num_heads


def _error(sample: Tensor, linear: nn.Linear, dequantized: Tensor) -> Tensor:
    """Error of the weights alone: inputs and bias are the same on both sides."""
    return squared_sums(F.linear(sample, dequantized.to(sample.dtype)), F.linear(sample, linear.weight))
