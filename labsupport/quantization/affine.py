"""Affine quantization: real numbers on an integer grid, and back.

One convention everywhere in this package, that of integer-arithmetic inference (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, equation 1):

    q     = clamp(round(x / scale) + zero_point, qmin, qmax)         zero_point is an integer
    x_hat = scale * (q - zero_point)

The other convention in use, x_hat = scale * q + offset, has a *real* offset (offset = -zero_point * scale). A zero
point of one convention in the formula of the other gives garbage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labsupport.numerics.checks import check_bits, check_finite


@dataclass(frozen=True, eq=False)
class QParams:
    """The grid: where its levels lie, how many there are, and which elements share a scale.

    scale, zero_point: of the same shape, broadcastable to the tensor, or [..., groups] when group_size is set.
    """

    scale: Float[Tensor, "*scales"]
    zero_point: Int[Tensor, "*scales"]
    bits: int = 8
    symmetric: bool = False
    axis: int | tuple[int, ...] | None = None
    group_size: int | None = None
    full_range: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.scale.shape != self.zero_point.shape:
            raise ValueError(
                "scale and zero_point must have the same shape, "
                f"got {list(self.scale.shape)} and {list(self.zero_point.shape)}"
            )
        if self.zero_point.is_floating_point():
            raise ValueError(f"zero_point must hold integers, got {self.zero_point.dtype}")

    @property
    def qmin(self) -> int:
        if not self.symmetric:
            return 0
        return -(2 ** (self.bits - 1)) + (0 if self.full_range else 1)

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.symmetric else torch.uint8


def choose_qparams(
    x: Float[Tensor, "*shape"],
    bits: int = 8,
    symmetric: bool = False,
    axis: int | tuple[int, ...] | None = None,
    group_size: int | None = None,
    full_range: bool = False,
) -> QParams:
    """The finest grid that covers every value of x, so that no value is wrong by more than half a step.

    axis: the dimension (or dimensions) that keeps its own scales. Weight [out, in] with axis=0: one scale
        per row, shape [out, 1]. Activations [batch, time, hidden] with axis=(0, 1): one scale per token. None: a single
        scale.
    group_size: consecutive elements of the last dimension that share a scale, of shape [..., groups]; the last
        group may be smaller. Every leading dimension keeps its own scales.
    symmetric: zero_point 0 and codes in ±(2**(bits-1) - 1); else codes in 0 .. 2**bits - 1.
    full_range: symmetric only. All 2**bits codes with scale 2 max|x| / (2**bits - 1), as in GPTQ's code: a finer grid,
        one end of which lies half a step inside ±max|x|, the other half a step outside.

    The range always contains 0, so 0.0 is represented exactly (padding, ReLU and masks stay zeros) and the zero
    point is a code. Raises ValueError for bits outside 2..8, and for x that is not floating point or not finite.
    """
    check_bits(bits)
    _check_floating_point(x)
    if full_range and not symmetric:
        raise ValueError("full_range=True needs symmetric=True; asymmetric grids always use all codes")

    low, high = value_range(x, axis, group_size)
    if not (torch.isfinite(low) & torch.isfinite(high)).all():
        check_finite(x)
    return qparams_from_range(low, high, bits, symmetric, axis=axis, group_size=group_size, full_range=full_range)


def quantize(x: Float[Tensor, "*shape"], qparams: QParams) -> Int[Tensor, "*shape"]:
    """Integer codes of x, uint8 or (symmetric) int8; values outside the range saturate at its ends."""
    _check_floating_point(x)
    check_finite(x)
    scale, zero_point = _per_element(qparams, x.shape)
    steps = torch.round(_at_least_float32(x) / scale)
    return (steps + zero_point).clamp_(qparams.qmin, qparams.qmax).to(qparams.dtype)


def dequantize(codes: Int[Tensor, "*shape"], qparams: QParams) -> Float[Tensor, "*shape"]:
    """The real number that each code stands for, in the precision of the scale (float32)."""
    scale, zero_point = _per_element(qparams, codes.shape)
    largest = torch.finfo(scale.dtype).max
    # An end of the grid may lie half a step outside the range: the clamp matters only if that overflows.
    return ((codes.to(scale.dtype) - zero_point) * scale).clamp_(-largest, largest)


def fake_quantize(
    x: Float[Tensor, "*shape"], qparams: QParams | None = None, **options: Any
) -> Float[Tensor, "*shape"]:
    """x moved to the nearest grid point, in x's own dtype. The grid: `qparams`, else choose_qparams(x, **options)."""
    if qparams is not None and options:
        raise ValueError(f"give either qparams or options of choose_qparams, got both ({', '.join(options)})")
    qparams = choose_qparams(x, **options) if qparams is None else qparams
    largest = torch.finfo(x.dtype).max
    return dequantize(quantize(x, qparams), qparams).clamp_(-largest, largest).to(x.dtype)


def qparams_from_range(
    low: Float[Tensor, "*scales"],
    high: Float[Tensor, "*scales"],
    bits: int = 8,
    symmetric: bool = False,
    *,
    axis: int | tuple[int, ...] | None = None,
    group_size: int | None = None,
    full_range: bool = False,
) -> QParams:
    """The grid that covers [low, high] and 0; both finite float32 or float64, low <= high. Observers call this."""
    check_bits(bits)
    low, high = low.clamp(max=0), high.clamp(min=0)
    levels = 2**bits - 1
    if symmetric:
        largest = torch.maximum(-low, high)
        scale = largest / (levels / 2) if full_range else largest / (2 ** (bits - 1) - 1)
    else:
        # Not (high - low) / levels: the difference overflows for ranges beyond half the largest float.
        scale = high / levels - low / levels
    scale = _safe_scale(scale, is_zero=(low == 0) & (high == 0))
    zero_point = torch.zeros_like(scale) if symmetric else torch.round(-low / scale).clamp_(0, levels)
    return QParams(scale, zero_point.to(torch.int32), bits, symmetric, axis, group_size, full_range)


def value_range(
    x: Float[Tensor, "*shape"], axis: int | tuple[int, ...] | None = None, group_size: int | None = None
) -> tuple[Float[Tensor, "*scales"], Float[Tensor, "*scales"]]:
    """Smallest and largest value of each set of elements that share a scale; both 0 for an empty set."""
    x = _at_least_float32(x)
    dims: tuple[int, ...]
    if group_size is not None:
        _check_groups(x, axis, group_size)
        x, dims, keepdim = to_groups(x, group_size), (-1,), False
    else:
        dims, keepdim = _reduced_dims(x, axis), axis is not None
    if x.numel() == 0:
        kept = x.sum(dims, keepdim=keepdim) if dims else x
        return torch.zeros_like(kept), torch.zeros_like(kept)
    if not dims:  # x has no dimension to reduce: a scalar, or axis names all of them
        return x, x
    return x.amin(dims, keepdim=keepdim), x.amax(dims, keepdim=keepdim)


def to_groups(x: Float[Tensor, "*lead n"], group_size: int) -> Float[Tensor, "*lead groups group_size"]:
    """The last dimension cut into groups; the last one is padded with zeros, which affect no range."""
    missing = -x.shape[-1] % group_size
    padded = torch.nn.functional.pad(x, (0, missing)) if missing else x
    return padded.unflatten(-1, (padded.shape[-1] // group_size, group_size))


def from_groups(values: Tensor, group_size: int, n: int) -> Tensor:
    """One value per group [..., groups], repeated for each of its elements [..., n]."""
    return values.repeat_interleave(group_size, dim=-1)[..., :n]


def _reduced_dims(x: Tensor, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.dim()))
    kept = (axis,) if isinstance(axis, int) else tuple(axis)
    for dim in kept:
        if not -x.dim() <= dim < x.dim():
            raise ValueError(f"axis must be a dimension of x, which has {x.dim()}, got {axis}")
    kept = tuple(dim % x.dim() for dim in kept)
    return tuple(dim for dim in range(x.dim()) if dim not in kept)


def _check_groups(x: Tensor, axis: int | tuple[int, ...] | None, group_size: int) -> None:
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"group_size must be a positive integer or None, got {group_size!r}")
    if x.dim() == 0:
        raise ValueError("group_size needs x with at least one dimension, got a scalar")
    if axis is not None and _reduced_dims(x, axis) != (x.dim() - 1,):
        raise ValueError(f"group_size splits the last dimension and keeps all others, which contradicts axis={axis}")


def _check_floating_point(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {x.dtype}")


def _at_least_float32(x: Tensor) -> Tensor:
    """float16 overflows at 65504 and bfloat16 has 8 bits of mantissa: neither can hold x / scale for 8-bit codes."""
    return x if x.dtype == torch.float64 else x.float()


def _safe_scale(scale: Tensor, is_zero: Tensor) -> Tensor:
    """A scale to divide by: 1 where all values are 0, and never denormal (too imprecise for a scale)."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny).masked_fill(is_zero, 1.0)


def _per_element(qparams: QParams, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """scale and zero_point in a shape that broadcasts to the tensor's."""
    scale, zero_point = qparams.scale, qparams.zero_point
    if qparams.group_size is not None:
        groups = math.ceil(shape[-1] / qparams.group_size) if shape else 0
        if not shape or scale.shape != (*shape[:-1], groups):
            raise ValueError(
                f"qparams hold scales {list(scale.shape)} for groups of {qparams.group_size}, "
                f"which does not fit a tensor of shape {list(shape)}"
            )
        scale = from_groups(scale, qparams.group_size, shape[-1])
        zero_point = from_groups(zero_point, qparams.group_size, shape[-1])
    return scale, zero_point
