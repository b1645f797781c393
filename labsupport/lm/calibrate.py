"""Runs calibration text through a model stage by stage, so that weights can be changed on the way.

A stage is the linear layers that read one input: q, k and v; o; gate and up; down. `stages` stops at each of them.
Whatever the caller does to the stage's layers there, every later stage sees: this is how GPTQ quantizes each layer on
the outputs of the already quantized ones, in a single forward pass.

Calibration has many tokens and a layer many activations for each. So one thing is kept for all of them: the hidden
states between two layers. A stage's inputs are computed from these whenever they are read, one batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.lm.model import Rotary
from labsupport.numerics.checks import check_all_finite, check_finite
from labsupport.numerics.devices import to_host

NUM_STAGES = 4  # in each layer
BATCH_TOKENS = 2048  # windows of equal length run together up to this many tokens


@dataclass
class HiddenStates:
    """What the next layer reads, for all windows. `stages_of` changes it in place, layer by layer.

    batches: one [windows, time, hidden] for each batch of windows of equal length, in the model's dtype
    rotaries: the rotation of positions, by length
    """

    batches: list[Float[Tensor, "windows time hidden"]]
    rotaries: dict[int, Rotary] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: Any, windows: Sequence[Int64[Tensor, " time"]], batch_tokens: int = BATCH_TOKENS
    ) -> HiddenStates:
        """The inputs of the first layer."""
        hidden, device = cls([]), model.embed_tokens.weight.device
        for batch in batch_windows(windows, batch_tokens):
            states, hidden.rotaries[batch.shape[1]] = model.embed(batch.to(device))
            hidden.batches.append(states)
        return hidden

    @property
    def num_tokens(self) -> int:
        return sum(batch.shape[0] * batch.shape[1] for batch in self.batches)

    def through(self, layer: Any) -> HiddenStates:
        """What comes after a whole layer, in place."""
        for states in self.batches:
            states.copy_(layer(states, self.rotaries[states.shape[1]]))
        return self


@dataclass
class Stage:
    """Linear layers that read the same activations. Valid until the next stage is asked for.

    names: within the layer, such as "self_attn.q_proj"
    inputs_of: from a batch of hidden states to the stage's inputs
    """

    layer_index: int
    layer: Any  # a DecoderLayer; Any, for its layers may be of many kinds
    names: tuple[str, ...]
    hidden: HiddenStates
    inputs_of: Callable[[Float[Tensor, "windows time hidden"]], Float[Tensor, "windows time in"]]

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a weight is NaN or infinite; the message names the layer.
        """
        named = zip(self.full_names, self.linears, strict=True)
        check_all_finite(
            [(f"the weight of {name}", each.weight) for name, each in named if isinstance(each, nn.Linear)]
        )

    @property
    def linears(self) -> list[Any]:
        """The layers as they are now."""
        return [self.layer.get_submodule(name) for name in self.names]

    @property
    def full_names(self) -> list[str]:
        """Within the model, such as "layers.3.self_attn.q_proj"."""
        return [f"layers.{self.layer_index}.{name}" for name in self.names]

    @property
    def in_features(self) -> int:
        return self.linears[0].in_features

    @property
    @torch.no_grad()
    def inputs(self) -> Iterator[Float[Tensor, "windows time in"]]:
        """Batch by batch, computed anew at each reading from what lies before the stage as it is then.

        Raises:
            ValueError: after the last one, if an input was NaN or infinite; the message names the layer.
        """
        finite = []
        for states in self.hidden.batches:
            batch = self.inputs_of(states)
            finite.append(torch.isfinite(batch).all())
            yield batch
        if not all(to_host(finite)):  # asked once: each question makes the host wait for a GPU
            for states in self.hidden.batches:
                check_finite(self.inputs_of(states), f"the calibration's inputs of {self.full_names[0]}")

    def read(
        self, add: Callable[[Float[Tensor, "windows time in"]], object], tokens: int
    ) -> Float[Tensor, "tokens in"]:
        """Hand each batch of inputs to ``add``; at most ``tokens`` of all inputs are returned, evenly spread."""
        step, seen = max(1, -(-self.hidden.num_tokens // tokens)), 0
        kept = []
        for batch in self.inputs:
            add(batch)
            flat = batch.flatten(0, -2)
            kept.append(flat[-seen % step :: step].clone())  # a view would keep the whole batch
            seen += len(flat)
        return torch.cat(kept)

    def sample(self, tokens: int) -> Float[Tensor, "tokens in"]:
        """At most ``tokens`` of the stage's inputs, evenly spread over all windows."""
        return self.read(lambda _: None, tokens)


def stages(model: nn.Module, windows: Sequence[Int64[Tensor, " time"]]) -> Iterator[Stage]:
    """All stages of all layers in order; the model's weights are read when they are needed, never earlier."""
    llama: Any = model
    hidden = HiddenStates.of(llama, windows)
    for index, layer in enumerate(llama.layers):
        last = index + 1 == len(llama.layers)  # nobody reads its output
        yield from stages_of(layer, index, hidden, last)


@torch.no_grad()
def stages_of(layer: Any, index: int, hidden: HiddenStates, last: bool = False) -> Iterator[Stage]:
    """The four stages of one layer; at the end ``hidden`` is what the layer returns. ``last``: it is not brought there.

    index: the layer's place in the model, for names.
    """
    attention, mlp = layer.self_attn, layer.mlp

    def read_by_attention(states: Tensor) -> Tensor:
        return layer.input_layernorm(states)

    def read_by_output(states: Tensor) -> Tensor:
        return _without(attention, "o_proj", read_by_attention(states), hidden.rotaries[states.shape[1]])

    def read_by_mlp(states: Tensor) -> Tensor:
        return layer.post_attention_layernorm(states)

    def read_by_down(states: Tensor) -> Tensor:
        return _without(mlp, "down_proj", read_by_mlp(states))

    yield Stage(index, layer, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), hidden, read_by_attention)
    yield Stage(index, layer, ("self_attn.o_proj",), hidden, read_by_output)
    for states in hidden.batches:
        states += attention.o_proj(read_by_output(states)) * layer.residual_multiplier
    yield Stage(index, layer, ("mlp.gate_proj", "mlp.up_proj"), hidden, read_by_mlp)
    yield Stage(index, layer, ("mlp.down_proj",), hidden, read_by_down)
    if not last:
        for states in hidden.batches:
            states += mlp.down_proj(read_by_down(states)) * layer.residual_multiplier


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


def _without(module: nn.Module, last: str, *arguments: Any) -> Tensor:
    """What ``module`` computes before its linear layer named ``last``: that layer's inputs."""
    layer = getattr(module, last)
    setattr(module, last, nn.Identity())
    try:
        return module(*arguments)
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
