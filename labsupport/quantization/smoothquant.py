"""SmoothQuant: make activations easy to quantize by moving their outlier channels into the weights.

Xiao et al. 2022, https://arxiv.org/abs/2211.10438. A linear layer computes the same if its inputs are divided, channel
by channel, by s and the columns of its weight multiplied by s (equation 3). With

    s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)            (equation 4)

alpha says how much of the difficulty moves: at 0 the weight's columns all get the same range, at 1 the activations'
channels do. The division costs nothing at run time, because it is folded into whatever makes X (fold.py). The paper
folds into normalization layers only; folding into v and up is common practice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.lm.calibrate import NUM_STAGES, HiddenStates, Stage, check_calibration, stages_of
from labsupport.quantization.fold import fold
from labsupport.quantization.int8 import quantize_rows, quantize_weight_int8

ALPHAS = tuple(i / 10 for i in range(11))  # the grid of the search
_SEARCH_TOKENS = 256
_SEARCH_ROWS = 4096  # of the head's


@torch.no_grad()
def smooth_model(
    model: nn.Module, calibration: Sequence[Int64[Tensor, " time"]], alpha: float | None = 0.5
) -> nn.Module:
    """A new model that computes the same function and loses less when its linear layers go to W8A8.

    calibration: windows of tokens; max|X_j| is taken over all of them.
    alpha: 0..1 for all layers; None searches the best for each set of layers that share an input (or no smoothing).

    Raises:
        ValueError: alpha outside 0..1; calibration that is not a list of 1-D token tensors.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, or be None to search for it, got {alpha}")
    smoothed: Any = copy.deepcopy(model)
    config: Any = model.config
    windows = check_calibration(calibration, config.vocab_size)
    hidden, layers = HiddenStates.of(smoothed, windows), list(smoothed.layers)
    for index, layer in enumerate(layers):
        smooth_layer(stages_of(layer, index, hidden, last=index + 1 == len(layers)), config, alpha)
    return smoothed


def smooth_layer(layer_stages: Iterable[Stage], config: Any, alpha: float | None) -> None:
    """The four stages of one layer (`stages_of`), in place."""
    seen: list[tuple[Stage, Tensor, Tensor]] = []
    for stage in layer_stages:
        largest = torch.zeros(stage.in_features, device=stage.linears[0].weight.device)
        sample = stage.read(partial(_raise_to, largest), _SEARCH_TOKENS)
        seen.append((stage, largest.to(sample.dtype), sample))
        if len(seen) == NUM_STAGES:
            # Backwards: the scales of o and down change rows of v and up, on which the scales before v and up depend.
            for stage, largest, sample in reversed(seen):
                fold(stage, _stage_scale(stage, largest, sample, config, alpha))


def _raise_to(largest: Float[Tensor, " in"], inputs: Float[Tensor, "*lead in"]) -> None:
    torch.maximum(largest, inputs.abs().flatten(0, -2).amax(0), out=largest)


@torch.no_grad()
def smooth_head(model: Any, calibration: Sequence[Int64[Tensor, " time"]], alpha: float | None = 0.5) -> None:
    """The same for the output head, in place: its scale goes into the final norm, and it gets a weight of its own.

    calibration: windows of tokens, for the outputs of the final norm. alpha: None searches.
    """
    device = model.lm_head.weight.device
    inputs = torch.cat([model.hidden_states(window[None].to(device))[0] for window in calibration])
    weight = model.lm_head.weight.detach()
    ranges = _Ranges(inputs.abs().amax(0), weight.abs().amax(0))
    alphas = ALPHAS if alpha is None else (alpha,)
    scales = [smoothing_scale(ranges.activation, ranges.weight, each) for each in alphas]
    sample = inputs[:: max(1, len(inputs) // _SEARCH_TOKENS)]
    rows = [weight[:: max(1, len(weight) // _SEARCH_ROWS)]]
    scale = best_scale(sample, rows, scales) if alpha is None else scales[0]
    model.norm.weight.div_(scale)
    with torch.device("meta"):
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = nn.Parameter(weight * scale)
    model.lm_head = head


def smoothing_scale(
    activation_max: Float[Tensor, " in"], weight_max: Float[Tensor, " in"], alpha: float
) -> Float[Tensor, " in"]:
    """Equation 4. Channels that are always zero, in the activations or the weights, are left alone (scale 1)."""
    scale = activation_max**alpha / weight_max ** (1 - alpha)
    return torch.where((activation_max > 0) & (weight_max > 0), scale, torch.ones_like(scale))


def _stage_scale(
    stage: Stage, largest: Float[Tensor, " in"], sample: Float[Tensor, "n in"], config: Any, alpha: float | None
) -> Float[Tensor, " in"]:
    """largest: max|X_j| over all tokens; sample: some of the inputs, to search alpha on."""
    ranges = _Ranges(largest, torch.cat(_weights(stage)).abs().amax(0))
    if "self_attn.o_proj" in stage.names:
        ranges = ranges.shared_by_query_heads(config.num_kv_heads, config.num_heads)
    if alpha is not None:
        return smoothing_scale(ranges.activation, ranges.weight, alpha)
    candidates = [smoothing_scale(ranges.activation, ranges.weight, alpha) for alpha in ALPHAS]
    candidates.append(torch.ones_like(ranges.activation))
    return best_scale(sample, _weights(stage), candidates)


def _weights(stage: Stage) -> list[Tensor]:
    return [linear.get_parameter("weight") for linear in stage.linears]


def best_scale(
    x: Float[Tensor, "n in"], weights: Sequence[Float[Tensor, "out in"]], scales: Sequence[Float[Tensor, " in"]]
) -> Float[Tensor, " in"]:
    """The scale of smallest `w8a8_error`, the first of equal ones; the host waits once for all errors."""
    errors = torch.stack([w8a8_errors(x, weights, scale) for scale in scales]).tolist()
    return scales[min(range(len(scales)), key=lambda i: sum(errors[i]))]


def w8a8_error(
    x: Float[Tensor, "n in"], weights: Sequence[Float[Tensor, "out in"]], scale: Float[Tensor, " in"]
) -> float:
    """The sum of `w8a8_errors`."""
    return sum(w8a8_errors(x, weights, scale).tolist())


def w8a8_errors(
    x: Float[Tensor, "n in"], weights: Sequence[Float[Tensor, "out in"]], scale: Float[Tensor, " in"]
) -> Float[Tensor, " weights"]:
    """Error of x @ weight.T in W8A8 after smoothing: squared, relative to each token's output, mean over tokens.

    Relative, because a token with massive activations (Sun et al. 2024, https://arxiv.org/abs/2402.17762) would
    otherwise decide alone, although its own scale has already contained it.
    """
    errors = []
    codes, step = quantize_rows(x / scale)
    for weight in weights:
        weight_codes, weight_step = quantize_weight_int8(weight * scale, look=False)
        exact, approximate = x @ weight.T, (codes @ weight_codes.float().T) * step * weight_step
        squared = (exact - approximate).square().sum(1) / exact.square().sum(1).clamp(min=torch.finfo(x.dtype).tiny)
        errors.append(squared.mean())
    return torch.stack(errors)


@dataclass
class _Ranges:
    activation: Float[Tensor, " in"]
    weight: Float[Tensor, " in"]

    def shared_by_query_heads(self, num_kv_heads: int, num_heads: int) -> _Ranges:
        """For each query head, the largest among those that read the same KV head."""

        def share(values: Tensor) -> Tensor:
            heads = values.view(num_kv_heads, num_heads // num_kv_heads, -1)
            return heads.amax(1, keepdim=True).expand_as(heads).flatten()

        return _Ranges(share(self.activation), share(self.weight))
