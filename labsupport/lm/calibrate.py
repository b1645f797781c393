"""Runs calibration text through a model stage by stage, so that weights can be changed on the way.

A stage is the linear layers that read one input: q, k and v; o; gate and up; down. `stages` stops at each of them with
its inputs for all windows. Whatever the caller does to the stage's layers there, every later stage sees: this is how
GPTQ quantizes each layer on the outputs of the already quantized ones, in a single forward pass. Who changes what lies
before the stage (AWQ folds scales into norms) calls `Stage.divide_inputs` as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.numerics.checks import check_all_finite
from labsupport.numerics.devices import to_host

NUM_STAGES = 4  # in each layer


@dataclass
class Stage:
    """Linear layers that read the same activations.

    names: within the layer, such as "self_attn.q_proj"
    inputs: one [windows, time, in] for each batch of windows of equal length
    """

    layer_index: int
    layer: Any  # a DecoderLayer; Any, for its layers may be of many kinds
    names: tuple[str, ...]
    inputs: list[Float[Tensor, "windows time in"]]

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a weight or an input is NaN or infinite; the message names the layer.
        """
        named = zip(self.full_names, self.linears, strict=True)
        checked = [(f"the weight of {name}", linear.weight) for name, linear in named if isinstance(linear, nn.Linear)]
        check_all_finite([*checked, *((f"the calibration's inputs of {self.full_names[0]}", x) for x in self.inputs)])

    @property
    def linears(self) -> list[Any]:
        """The layers as they are now."""
        return [self.layer.get_submodule(name) for name in self.names]

    @property
    def full_names(self) -> list[str]:
        """Within the model, such as "layers.3.self_attn.q_proj"."""
        return [f"layers.{self.layer_index}.{name}" for name in self.names]

    def divide_inputs(self, scale: Float[Tensor, " in"]) -> None:
        """Bring the inputs that this run has already computed in line with a source that was divided by ``scale``:
        a norm's weight, or the rows of v_proj or up_proj."""
        self.inputs[:] = [(batch / scale).to(batch.dtype) for batch in self.inputs]

    def sample(self, max_tokens: int) -> Float[Tensor, "tokens in"]:
        """At most ``max_tokens`` of the stage's inputs, evenly spread over all windows."""
        tokens = torch.cat([batch.flatten(0, -2) for batch in self.inputs])
        return tokens[:: max(1, -(-len(tokens) // max_tokens))]


@torch.no_grad()
def stages(model: nn.Module, windows: Sequence[Int64[Tensor, " time"]], batch_tokens: int = 2048) -> Iterator[Stage]:
    """All stages of all layers in order; the model's weights are read when they are needed, never earlier.

    batch_tokens: windows of equal length run together up to this many tokens.
    """
    llama: Any = model
    device = next(llama.parameters()).device
    batches = [llama.embed(batch.to(device)) for batch in batch_windows(windows, batch_tokens)]
    hidden = [h for h, _ in batches]
    rotaries = [rotary for _, rotary in batches]
    for index, layer in enumerate(llama.layers):
        attention, mlp = layer.self_attn, layer.mlp
        inputs = [layer.input_layernorm(h) for h in hidden]
        yield Stage(index, layer, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), inputs)

        inputs = _without(attention, "o_proj", list(zip(inputs, rotaries, strict=True)))
        yield Stage(index, layer, ("self_attn.o_proj",), inputs)
        hidden = [h + attention.o_proj(x) for h, x in zip(hidden, inputs, strict=True)]

        inputs = [layer.post_attention_layernorm(h) for h in hidden]
        yield Stage(index, layer, ("mlp.gate_proj", "mlp.up_proj"), inputs)

        inputs = _without(mlp, "down_proj", [(x,) for x in inputs])
        yield Stage(index, layer, ("mlp.down_proj",), inputs)
        if index + 1 < len(llama.layers):  # nobody reads the last layer's output
            hidden = [h + mlp.down_proj(x) for h, x in zip(hidden, inputs, strict=True)]


def batch_windows(
    windows: Sequence[Int64[Tensor, " time"]], batch_tokens: int
) -> Iterator[Int64[Tensor, "windows time"]]:
    """Neighbours of equal length, stacked: no padding, which would count as tokens."""
    start = 0
    for stop in range(1, len(windows) + 1):
        length = len(windows[start])
        full = (stop - start + 1) * length > batch_tokens
        if stop == len(windows) or len(windows[stop]) != length or full:
            yield torch.stack(list(windows[start:stop]))
            start = stop


def first_windows(windows: Sequence[Int64[Tensor, " time"]], tokens: int) -> list[Int64[Tensor, " time"]]:
    """As many of the first windows as it takes to reach ``tokens`` tokens; all of them if they hold fewer."""
    kept: list[Tensor] = []
    for window in windows:
        if sum(map(len, kept)) >= tokens:
            break
        kept.append(window)
    return kept


def check_model(model: object) -> None:
    """
    Raises:
        ValueError: a model of another library, or a `LanguageModel`, where a `Llama` is needed.
    """
    if type(model).__module__.startswith("transformers"):
        raise ValueError(
            f"model must be a labsupport Llama, got transformers' {type(model).__name__}: "
            f"model.save_pretrained(folder), tokenizer.save_pretrained(folder), then load_lm(folder).model"
        )
    if hasattr(model, "tokenizer") and isinstance(getattr(model, "model", None), nn.Module):
        raise ValueError(f"model must be a labsupport Llama, got a {type(model).__name__}: give its .model")


def check_calibration(calibration: Sequence[Tensor], vocab_size: int) -> list[Int64[Tensor, " time"]]:
    """The windows as a list, or a ValueError that names the wrong one."""
    if isinstance(calibration, Tensor) or not isinstance(calibration, Sequence):
        raise ValueError(f"calibration must be a list of 1-D token tensors, got {type(calibration).__name__}")
    if len(calibration) == 0:
        raise ValueError("calibration must hold at least one window, got an empty list")
    for i, window in enumerate(calibration):
        if not isinstance(window, Tensor) or window.dim() != 1 or window.dtype != torch.int64 or len(window) == 0:
            given = f"{window.dtype} {list(window.shape)}" if isinstance(window, Tensor) else type(window).__name__
            raise ValueError(f"calibration[{i}] must be a 1-D int64 tensor with at least one token, got {given}")
    ends = to_host([torch.stack(window.aminmax()) for window in calibration])  # waiting once, wherever they are
    for i, (low, high) in enumerate(ends):
        if low < 0 or high >= vocab_size:
            raise ValueError(f"calibration[{i}] must hold ids in 0..{vocab_size - 1}, got {low}..{high}")
    return list(calibration)


def _without(module: nn.Module, last: str, arguments: list[tuple]) -> list[Tensor]:
    """Outputs of ``module`` on each of the arguments before its linear layer named ``last``: that layer's inputs."""
    layer = getattr(module, last)
    setattr(module, last, nn.Identity())
    try:
        return [module(*argument) for argument in arguments]
    finally:
        setattr(module, last, layer)


def nmse(given: Tensor, wanted: Tensor) -> float:
    """‖given - wanted‖² / ‖wanted‖²: the output error in reports. Where all of ``wanted`` is zero: 0 or infinite."""
    return error_share(squared_sums(given, wanted).tolist())


def squared_sums(given: Tensor, wanted: Tensor) -> Float[Tensor, " 2"]:
    """‖given - wanted‖² and ‖wanted‖², still on the device: `error_share` makes the error of them."""
    wanted = wanted.float()
    return torch.stack([(given.float() - wanted).square().sum(), wanted.square().sum()])


def error_share(sums: Sequence[float]) -> float:
    """error / power of the two numbers of `squared_sums`."""
    error, power = sums
    if power == 0:
        return 0.0 if error == 0 else math.inf
    return error / power  # NaN stays NaN
