"""`quantize_model`: any method of this chapter on every linear layer of a language model's blocks.

methods.py says what each method does at each stage of the model. Embedding, norms and head stay as they are, unless
``head_bits`` is given.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from labsupport.lm.calibrate import (
    NUM_STAGES,
    HiddenStates,
    Stage,
    check_calibration,
    check_model,
    error_share,
    first_windows,
    stages_of,
)
from labsupport.lm.config import LlamaConfig
from labsupport.numerics.checks import check_bits
from labsupport.numerics.devices import to_host
from labsupport.progress import progress_bar
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear
from labsupport.quantization.methods import ERROR_TOKENS, METHODS, MethodOptions
from labsupport.quantization.report import LayerReport, QuantizationReport
from labsupport.quantization.smoothquant import smooth_head, smooth_layer

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

    calibration: windows of token ids of any length, for all methods. SmolLM2 needs 16 windows of 512 tokens or more.
    method: "rtn" | "gptq" | "awq" | "int8_dynamic" | "int8_static", see methods.py.
    bits, group_size, symmetric: the grid of rtn, gptq and awq (awq is never symmetric); int8_* have 8 bits and one
        scale per row.
    act_order, static_groups, damping: gptq only, see `gptq_quantize`. clip: awq only, search each group's range too.
    smooth: int8_* only, apply SmoothQuant first: its alpha, or True to search the best for each layer.
    head_bits: 8 gives the head int8 weights of its own (the embedding stays): decoding reads it for every token.

    The result's ``quantization_report`` is a `QuantizationReport`. Its weights are in the state dict, which loads into
    another model quantized the same way.

    Raises:
        ValueError: no such method; calibration that is not a list of token tensors; a model whose blocks lack an
            nn.Linear where a Llama has one; options outside their range.
    """
    _check_options(method, bits, smooth, head_bits)
    check_model(model)
    llama: Any = model
    windows = check_calibration(calibration, llama.config.vocab_size)
    for layer in llama.layers:
        _check_layer(layer)
    start = time.perf_counter()
    quantized = copy.deepcopy(llama)
    options = MethodOptions(bits, group_size, symmetric, act_order, static_groups, damping, clip)
    run = QuantizationRun.of(quantized, windows, method, options, smooth)
    report = QuantizationReport(method, run.bits, _bytes(model))
    with progress_bar(None, method, "stage", progress, total=NUM_STAGES * len(llama.layers)) as bar:
        for index, layer in enumerate(quantized.layers):
            report.layers += run.layer(index, layer, bar.update)
    if head_bits is not None:
        if smooth is not False:
            smooth_head(quantized, windows[:_HEAD_WINDOWS], None if smooth is True else smooth)
        head = DynamicQuantizedLinear if method == "int8_dynamic" else Int8WeightLinear
        quantized.lm_head = head.from_float(quantized.lm_head)
    report.bytes_after = _bytes(quantized)
    report.seconds = time.perf_counter() - start
    quantized.quantization_report = report
    return quantized


@dataclass
class QuantizationRun:
    """`quantize_model` one layer at a time, in order. What it keeps from layer to layer is ``states``.

    hidden: the inputs of the next layer, as the quantized layers before it compute them
    smooth_hidden: as the smoothed ones do, where SmoothQuant comes first
    """

    config: LlamaConfig
    method: str
    options: MethodOptions
    smooth: bool | float
    hidden: HiddenStates
    smooth_hidden: HiddenStates | None = None

    @classmethod
    def of(
        cls, model: Any, windows: list[Tensor], method: str, options: MethodOptions, smooth: bool | float = False
    ) -> QuantizationRun:
        """Before the first layer; of ``model`` only the embedding is read. For the arguments see `quantize_model`."""
        _check_options(method, options.bits, smooth, None)
        only_for_errors = method in ("rtn", "int8_dynamic")
        needed = first_windows(windows, ERROR_TOKENS) if only_for_errors else windows
        smooth_hidden = None if smooth is False else HiddenStates.of(model, windows)
        return cls(model.config, method, options, smooth, HiddenStates.of(model, needed), smooth_hidden)

    @property
    def bits(self) -> int:
        return 8 if self.method.startswith("int8") else self.options.bits

    @property
    def states(self) -> list[HiddenStates]:
        return [self.hidden] if self.smooth_hidden is None else [self.hidden, self.smooth_hidden]

    @torch.no_grad()
    def layer(self, index: int, layer: Any, after_stage: Callable[[], object] = lambda: None) -> list[LayerReport]:
        """Quantize the next layer in place."""
        last = index + 1 == self.config.num_layers
        if self.smooth_hidden is not None:
            alpha = None if self.smooth is True else self.smooth
            smooth_layer(stages_of(layer, index, self.smooth_hidden, last), self.config, alpha)

        def counted() -> Iterator[Stage]:
            for stage in stages_of(layer, index, self.hidden, last):
                yield stage
                after_stage()

        reports = []
        replacements = list(METHODS[self.method](counted(), self.options))
        errors = to_host([sums for _, _, sums in replacements])  # a GPU is waited for once for all of them
        for (name, module, _), sums in zip(replacements, errors, strict=True):
            own_name = name.removeprefix(f"layers.{index}.")
            linear = layer.get_submodule(own_name)
            sizes = _bytes(linear), _bytes(module)
            reports.append(LayerReport(name, tuple(linear.weight.shape), *sizes, error_share(sums)))
            parent, _, child = own_name.rpartition(".")
            setattr(layer.get_submodule(parent), child, module)
        return reports


def _check_options(method: str, bits: int, smooth: bool | float, head_bits: int | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    check_bits(bits)
    if smooth is not False and not method.startswith("int8"):
        raise ValueError(f"smooth is for methods that quantize activations (int8_*); got method {method!r}")
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
    """Of all parameters, tied ones counted once, and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
