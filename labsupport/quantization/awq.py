"""AWQ: scale up the input channels that matter before rounding, and clip each group's range.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978).
A weight's rounding error is multiplied by its input, so channels with large inputs deserve a finer grid. Multiplying their
columns by s and dividing the inputs by s leaves the product as it was and divides their share of the error by s; too
large an s widens the grid of the whole group. The best s is searched (equations 4 and 5): s = mean|x|^ratio for
20 ratios, judged on the layer's output error. That error is tr(dW G dWᵀ) with G = XᵀX / n, so the inputs
are read once, whatever number of scales are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.quantization.affine import check_bits, check_finite, from_groups, to_groups
from labsupport.quantization.qweight import (
    QuantizedWeight,
    find_scale_zero,
    quantize_to_codes,
    resolve_group_size,
)

NUM_RATIOS = 20
MAX_SHRINK = 0.5


@torch.no_grad()
def awq_quantize(
    weight: Float[Tensor, "out in"],
    inputs: Float[Tensor, "*lead in"],
    bits: int = 4,
    group_size: int | None = 64,
    clip: bool = True,
) -> QuantizedWeight:
    """Quantize one layer's weight by the scale, and with ``clip`` the ranges, that serve ``inputs`` best.

    The result's `input_scale` holds s, and its ``dequantize()`` divides it out again: that is the weight for the original
    inputs. (Within a model, `quantize_model` folds s into the layer before instead.) On ``inputs`` the output error is
    never above that of round-to-nearest, which is ratio 0 without clipping.

    Raises:
        ValueError: bits outside 2..8; shapes that do not fit; no inputs; a value that is not finite.
    """
    weight, stats = _checked(weight, inputs, bits)
    group_size = resolve_group_size(group_size, weight.shape[1])
    scale = search_scale(weight, stats, bits, group_size).scale
    scaled, stats = weight * scale, stats.scaled(scale)
    if clip:
        scaled = clip_weight(scaled, stats, bits, group_size)
    grid_scale, zero_point = find_scale_zero(to_groups(scaled, group_size), bits)
    columns = weight.shape[1]
    codes = quantize_to_codes(scaled, from_groups(grid_scale, group_size, columns),
                              from_groups(zero_point, group_size, columns), bits)  # fmt: skip
    return QuantizedWeight.from_codes(codes, grid_scale, zero_point, bits, group_size, input_scale=scale)


@dataclass
class InputStats:
    """All that AWQ needs to know of a layer's inputs.

    mean_abs: [in], mean |x| of each channel
    gram: [in, in], XᵀX / n
    """

    mean_abs: Float[Tensor, " in"]
    gram: Float[Tensor, "in in"]

    def scaled(self, scale: Float[Tensor, " in"]) -> InputStats:
        """Those of the inputs divided by ``scale``."""
        return InputStats(self.mean_abs / scale, self.gram / (scale[:, None] * scale))


@dataclass
class ScaleSearch:
    """The best scale, and the whole curve that it is the lowest point of."""

    scale: Float[Tensor, " in"]
    ratio: float
    ratios: list[float]
    errors: list[float]


def search_scale(
    weight: Float[Tensor, "out in"], stats: InputStats, bits: int, group_size: int
) -> ScaleSearch:
    """Try s = mean|x|^ratio / sqrt(max · min) for the ratios 0, 1/20, ... 19/20 on all rows together.

    Layers that read the same inputs share s: give their weights as one, rows below rows.
    """
    ratios = [i / NUM_RATIOS for i in range(NUM_RATIOS)]
    scales = [channel_scale(stats.mean_abs, ratio) for ratio in ratios]
    errors = [0.0] * NUM_RATIOS
    for rows in weight.split(256):  # few enough to stay in the processor's cache
        for i, scale in enumerate(scales):
            moved = _round_trip(rows * scale, bits, group_size).div_(scale).sub_(rows)
            errors[i] += output_error(moved, stats.gram)
    best = min(range(NUM_RATIOS), key=errors.__getitem__)
    return ScaleSearch(scales[best], ratios[best], ratios, errors)


def channel_scale(mean_abs: Float[Tensor, " in"], ratio: float) -> Float[Tensor, " in"]:
    """s of one ratio; normalized so that its largest and smallest value are each other's reciprocal."""
    scale = mean_abs.pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


def clip_weight(
    weight: Float[Tensor, "out in"], stats: InputStats, bits: int, group_size: int
) -> Float[Tensor, "out in"]:
    """Each row's groups clamped to the share (1, 0.95, ... 0.55) of their largest |w| whose rounding error matters least.

    Groups are judged apart, by the error each alone would cause (section 3.2 of the paper's code: `auto_clip`).
    A row whose total error rises nevertheless, for errors of different groups correlate, keeps its range.
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
    return torch.cat(result).flatten(1)[:, : weight.shape[1]]


def output_error(moved: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> float:
    """Sum over rows of the mean squared output error that the change ``moved`` of a weight causes."""
    return float((moved @ gram).mul_(moved).sum())


def _round_trip(weight: Float[Tensor, "out in"], bits: int, group_size: int) -> Float[Tensor, "out in"]:
    return _round_trip_groups(to_groups(weight, group_size), bits).flatten(1)[:, : weight.shape[1]]


def _round_trip_groups(groups: Float[Tensor, "out groups size"], bits: int) -> Float[Tensor, "out groups size"]:
    """Round-to-nearest and back, as rtn_quantize does it."""
    scale, zero_point = find_scale_zero(groups, bits)
    scale, zero_point = scale[..., None], zero_point[..., None].float()
    return (groups / scale).round_().add_(zero_point).clamp_(0, 2**bits - 1).sub_(zero_point).mul_(scale)


def _diagonal_blocks(gram: Float[Tensor, "in in"], size: int) -> Float[Tensor, "groups size size"]:
    missing = -len(gram) % size
    padded = torch.nn.functional.pad(gram, (0, missing, 0, missing))
    return torch.stack([padded[i : i + size, i : i + size] for i in range(0, len(padded), size)])
