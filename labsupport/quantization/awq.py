"""AWQ: scale up the input channels that matter before rounding, and clip each group's range.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978).
A weight's rounding error is multiplied by its input, so channels with large inputs deserve a finer grid. Multiplying
their columns by s and dividing the inputs by s leaves the product unchanged and divides their share of the error by s;
too large an s widens the grid of the whole group. The best s is searched (equations 4 and 5):

    s* = argmin ‖Q(W diag(s)) diag(s)⁻¹ X - W X‖,    s = mean|x|^ratio

over 20 ratios. `search_scale_on_outputs` does so as the paper states it, `search_scale` finds the same faster. Within a
model nothing divides the inputs at run time: fold.py divides the layer before instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.numerics.checks import check_all_finite, check_bits
from labsupport.numerics.devices import to_host
from labsupport.numerics.hessian import HessianAccumulator
from labsupport.quantization.affine import to_groups
from labsupport.quantization.qweight import QuantizedWeight, resolve_group_size, scale_zero_from_range
from labsupport.quantization.rtn import rtn_quantize

NUM_RATIOS = 20
RATIOS = [i / NUM_RATIOS for i in range(NUM_RATIOS)]
MAX_SHRINK = 0.5


@torch.no_grad()
def search_scale_on_outputs(
    weight: Float[Tensor, "out in"], inputs: Float[Tensor, "n in"], bits: int, group_size: int
) -> ScaleSearch:
    """The paper's search: quantize under each scale, and compare the layer's outputs with the exact ones."""
    mean_abs = inputs.abs().mean(0)
    wanted = inputs @ weight.T
    errors = []
    for ratio in RATIOS:
        s = channel_scale(mean_abs, ratio)
        quantized = rtn_quantize(weight * s, bits, group_size).dequantize()
        outputs = (inputs / s) @ quantized.T
        errors.append((outputs - wanted).square().sum(1).mean())
    return ScaleSearch.of(mean_abs, to_host(errors))


def channel_scale(mean_abs: Float[Tensor, " in"], ratio: float) -> Float[Tensor, " in"]:
    """s = mean|x|^ratio / sqrt(max · min): normalized so that its largest and smallest value are reciprocals."""
    scale = mean_abs.pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


@dataclass
class ScaleSearch:
    """The best scale, and the curve of which it is the lowest point."""

    scale: Float[Tensor, " in"]
    ratio: float
    ratios: list[float]
    errors: list[float]  # ‖error of the outputs‖² of each ratio, mean over tokens

    @classmethod
    def of(cls, mean_abs: Float[Tensor, " in"], errors: list[float]) -> ScaleSearch:
        """The ratio of smallest error, the first of equal ones."""
        ratio = min(zip(errors, RATIOS, strict=True))[1]
        return cls(channel_scale(mean_abs, ratio), ratio, list(RATIOS), errors)


@torch.no_grad()
def awq_quantize(
    weight: Float[Tensor, "out in"],
    inputs: Float[Tensor, "*lead in"],
    bits: int = 4,
    group_size: int | None = 64,
    clip: bool = True,
) -> QuantizedWeight:
    """Quantize one layer's weight with the scale, and with ``clip`` the ranges, that suit ``inputs`` best.

    The result's `input_scale` holds s, and its ``dequantize()`` divides by it again: that is the weight for the
    original inputs. (Within a model, `quantize_model` folds s into the layer before.) On ``inputs`` the output error
    is never above that of round-to-nearest, which is ratio 0 without clipping.

    Raises:
        ValueError: bits outside 2..8; shapes that do not fit; no inputs; a value that is not finite.
    """
    weight, stats = _checked(weight, inputs, bits)
    group_size = resolve_group_size(group_size, weight.shape[1])
    scale = search_scale(weight, stats, bits, group_size).scale
    scaled, stats = weight * scale, stats.scaled(scale)
    if clip:
        scaled = clip_weight(scaled, stats, bits, group_size)
    return replace(rtn_quantize(scaled, bits, group_size), input_scale=scale)


@dataclass
class InputStats:
    """All that AWQ needs to know about a layer's inputs.

    mean_abs: [in], mean |x| of each channel
    gram: [in, in], XᵀX / n
    """

    mean_abs: Float[Tensor, " in"]
    gram: Float[Tensor, "in in"]

    @classmethod
    def of(cls, batches: Iterable[Float[Tensor, "*lead in"]]) -> InputStats:
        """Over all tokens of all batches."""
        accumulator: InputStatsAccumulator | None = None
        for batch in batches:
            if accumulator is None:
                accumulator = InputStatsAccumulator(batch.shape[-1], batch.device)
            accumulator.add(batch)
        if accumulator is None:
            raise ValueError("inputs must hold at least one token, got none")
        return accumulator.stats

    def scaled(self, scale: Float[Tensor, " in"]) -> InputStats:
        """Those of the inputs divided by ``scale``."""
        return InputStats(self.mean_abs / scale, self.gram / (scale[:, None] * scale))


class InputStatsAccumulator:
    """`InputStats` of inputs that come batch by batch."""

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self._hessian = HessianAccumulator(in_features, device)
        self._sum_abs = torch.zeros(in_features, device=device)

    def add(self, inputs: Float[Tensor, "*lead in"]) -> None:
        self._hessian.add(inputs)
        self._sum_abs += inputs.float().abs().flatten(0, -2).sum(0)

    @property
    def stats(self) -> InputStats:
        if self._hessian.num_tokens == 0:
            raise ValueError("inputs must hold at least one token, got none")
        return InputStats(self._sum_abs / self._hessian.num_tokens, self._hessian.hessian / 2)


@torch.no_grad()
def search_scale(weight: Float[Tensor, "out in"], stats: InputStats, bits: int, group_size: int) -> ScaleSearch:
    """`search_scale_on_outputs`, with the error from the Gram matrix: it is tr(dW G dWᵀ) with G = XᵀX / n, so that the
    inputs are read once, however many scales are tried.

    Layers that read the same inputs share s: pass their weights as one, stacked by rows.
    """
    scales = [channel_scale(stats.mean_abs, ratio) for ratio in RATIOS]
    errors: list[list[Tensor]] = [[] for _ in scales]  # added up once the host has them: it waits once, not each time
    for rows in weight.split(256):  # few enough to stay in the cache
        for i, scale in enumerate(scales):
            moved = _round_trip(rows * scale, bits, group_size).div_(scale).sub_(rows)
            errors[i].append(row_errors(moved, stats.gram).sum())
    parts = torch.stack([torch.stack(parts) for parts in errors]).tolist()
    return ScaleSearch.of(stats.mean_abs, [sum(each) for each in parts])


@torch.no_grad()
def clip_weight(
    weight: Float[Tensor, "out in"], stats: InputStats, bits: int, group_size: int
) -> Float[Tensor, "out in"]:
    """Each row's groups clamped to the share (1, 0.95, ... 0.55) of their largest |w| that changes the output least.

    Groups are judged one by one, by the error that each alone would cause, as in the authors' code. A row whose total
    error rises nevertheless, since the errors of different groups correlate, keeps its range.
    """
    groups = to_groups(weight, group_size)  # [out, groups, size]
    gram = _diagonal_blocks(stats.gram, group_size)  # [groups, size, size]
    result = []
    for rows in groups.split(max(1, 256 * 1024 // max(1, groups.shape[1] * groups.shape[2]))):
        largest = rows.abs().amax(-1, keepdim=True)
        best_error, best_limit = torch.full_like(largest, torch.inf), largest
        for i in range(int(MAX_SHRINK * NUM_RATIOS)):
            limit = largest * (1 - i / NUM_RATIOS)
            moved = (_round_trip_groups(rows.clamp(-limit, limit), bits) - rows).transpose(0, 1)
            error = (moved @ gram).mul_(moved).sum(-1).t()[..., None]
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_limit = torch.where(better, limit, best_limit)
        result.append(rows.clamp(-best_limit, best_limit))
    clipped = torch.cat(result).flatten(1)[:, : weight.shape[1]]
    before, after = (
        row_errors(_round_trip(candidate, bits, group_size) - weight, stats.gram) for candidate in (weight, clipped)
    )
    return torch.where((after < before)[:, None], clipped, weight)


def row_errors(moved: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> Float[Tensor, " out"]:
    """Mean squared error of each output that the change ``moved`` of a weight causes."""
    return (moved @ gram).mul_(moved).sum(1)


def _round_trip(weight: Float[Tensor, "out in"], bits: int, group_size: int) -> Float[Tensor, "out in"]:
    return _round_trip_groups(to_groups(weight, group_size), bits).flatten(1)[:, : weight.shape[1]]


def _round_trip_groups(groups: Float[Tensor, "out groups size"], bits: int) -> Float[Tensor, "out groups size"]:
    """Round to nearest and back, as rtn_quantize does."""
    scale, zero_point = scale_zero_from_range(groups.amin(-1), groups.amax(-1), bits)
    scale, zero_point = scale[..., None], zero_point[..., None].float()
    return (groups / scale).round_().add_(zero_point).clamp_(0, 2**bits - 1).sub_(zero_point).mul_(scale)


def _diagonal_blocks(gram: Float[Tensor, "in in"], size: int) -> Float[Tensor, "groups size size"]:
    missing = -len(gram) % size
    padded = torch.nn.functional.pad(gram, (0, missing, 0, missing))
    return torch.stack([padded[i : i + size, i : i + size] for i in range(0, len(padded), size)])


def _checked(weight: Tensor, inputs: Tensor, bits: int) -> tuple[Tensor, InputStats]:
    check_bits(bits)
    if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(
            f"weight must be a floating-point [out, in] with elements, got {weight.dtype} {list(weight.shape)}"
        )
    if inputs.dim() < 2 or inputs.shape[-1] != weight.shape[1] or not inputs.is_floating_point():
        raise ValueError(
            f"inputs must be floating point of shape [..., in] = [..., {weight.shape[1]}] for weight "
            f"{list(weight.shape)}, got {inputs.dtype} {list(inputs.shape)}"
        )
    check_all_finite([("weight", weight), ("inputs", inputs)])
    return weight.detach().float(), InputStats.of([inputs.detach()])
