"""A quantized weight as it lies in memory: packed codes, one scale and one zero point per row and group.

Every weight-only method (round-to-nearest, GPTQ, AWQ) picks its codes differently and ends here. Storage is that of
GPTQ checkpoints: float16 scales and zero points of `bits` bits, 4 + (16 + 4) / 128 = 4.156 bits per weight for 4 bits
and groups of 128. Rounding a scale *after* the codes are chosen would move every level, so `find_scale_zero` rounds it
before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from labsupport.numerics.checks import check_bits, check_finite
from labsupport.numerics.devices import to_host
from labsupport.numerics.packing import pack, unpack
from labsupport.quantization.affine import qparams_from_range

# Where float16 has its full 11 bits of precision. Scales outside stay float32.
_HALF_NORMAL = (2.0**-14, 65504.0)


def find_scale_zero(
    weight_group: Float[Tensor, "*lead group_size"], bits: int, symmetric: bool = False
) -> tuple[Float[Tensor, "*lead"], Int[Tensor, "*lead"]]:
    """Scale (float32) and zero point (int32) of weights that share them, for codes 0 .. 2**bits - 1.

    Asymmetric: the range is that of the group, extended to 0. Symmetric: scale 2 max|w| / (2**bits - 1), zero point
    2**(bits - 1). These are the grids of the GPTQ authors' code (Frantar et al. 2022, https://arxiv.org/abs/2210.17323).
    All-zero groups get scale 1. The scale is already a float16 number; where float16 would lose precision (below
    6.1e-5, above 65504) it stays float32. Asymmetric scales are rounded up, so that the grid still covers the group: no
    weight is wrong by more than half a step. Symmetric ones are rounded down: there the ends of a group lie on a tie,
    which rounding to even resolves outwards for -max|w|, and the clamp inwards for +max|w|. A larger scale would move
    both inwards and shrink every group's largest weight (4 bits, groups of 64, SmolLM2: perplexity 24.6 instead of
    23.0). The cost is 2**-10 max|w| beyond the half step, at those ends only.
    """
    check_bits(bits)
    weight_group = weight_group.float()
    low, high = weight_group.amin(-1), weight_group.amax(-1)
    if not (torch.isfinite(low) & torch.isfinite(high)).all():
        check_finite(weight_group, "weight")
    return scale_zero_from_range(low, high, bits, symmetric)


def scale_zero_from_range(
    low: Float[Tensor, "*lead"], high: Float[Tensor, "*lead"], bits: int, symmetric: bool = False
) -> tuple[Float[Tensor, "*lead"], Int[Tensor, "*lead"]]:
    """find_scale_zero for a known range, for example after clipping."""
    exact = qparams_from_range(low, high, bits, symmetric, full_range=symmetric)
    scale = round_scale(exact.scale, up=not symmetric)
    if symmetric:
        return scale, torch.full_like(exact.zero_point, 2 ** (bits - 1))
    zero_point = torch.round(-low / scale).clamp(0, 2**bits - 1)
    return scale, zero_point.to(torch.int32)


def round_scale(scale: Float[Tensor, "*lead"], up: bool = True) -> Float[Tensor, "*lead"]:
    """Each scale rounded up (or down) to a float16 number, as float32; unchanged where float16 is not precise."""
    half = scale.half()
    wrong_side = half.float() < scale if up else half.float() > scale
    neighbour = torch.nextafter(half, torch.full_like(half, math.inf if up else 0.0))
    rounded = torch.where(wrong_side, neighbour, half).float()
    smallest, largest = _HALF_NORMAL
    return torch.where((scale >= smallest) & (torch.maximum(scale, rounded) <= largest), rounded, scale)


def quantize_to_codes(
    weight: Float[Tensor, "*shape"], scale: Float[Tensor, "*shape"], zero_point: Int[Tensor, "*shape"], bits: int
) -> UInt8[Tensor, "*shape"]:
    """Codes 0 .. 2**bits - 1 of the nearest levels; scale and zero_point broadcast to the weight."""
    return (torch.round(weight / scale) + zero_point).clamp_(0, 2**bits - 1).to(torch.uint8)


def dequantize_groups(
    codes: UInt8[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int[Tensor, "out groups"],
    group_size: int,
    group_index: Int[Tensor, " in"] | None = None,
) -> Float[Tensor, "out in"]:
    """scale * (code - zero_point) in float32, with each column's scale and zero point: those of column // group_size,
    or of group_index."""
    columns = torch.arange(codes.shape[1], device=codes.device) // group_size if group_index is None else group_index
    weight = codes.float()
    weight -= zero_point.float()[:, columns]
    weight *= scale.float()[:, columns]
    return weight


def resolve_group_size(group_size: int | None, in_features: int) -> int:
    """None or -1: one group per row (per output channel); a group never exceeds the row."""
    if group_size is None or group_size == -1:
        return max(in_features, 1)
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"group_size must be a positive integer, or None for one group per row, got {group_size!r}")
    return min(group_size, max(in_features, 1))


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Packed codes and their grid. Build it with `from_codes`.

    packed: [out, ceil(in * bits / 8)] uint8, see packing.py
    scale: [out, groups], float16 where that loses nothing, else float32
    packed_zero_point: [ceil(out * groups * bits / 8)] uint8
    group_index: [in] int32, each column's group (GPTQ's act-order with dynamic groups); None: column // group_size
    input_scale: [in] float32, AWQ's scales where no layer before takes them: the codes hold weight * input_scale
    """

    packed: UInt8[Tensor, "out bytes"]
    scale: Float[Tensor, "out groups"]
    packed_zero_point: UInt8[Tensor, " zero_bytes"]
    bits: int
    group_size: int
    shape: tuple[int, int]
    group_index: Int[Tensor, " in"] | None = None
    input_scale: Float[Tensor, " in"] | None = None

    @classmethod
    def from_codes(
        cls,
        codes: UInt8[Tensor, "out in"],
        scale: Float[Tensor, "out groups"],
        zero_point: Int[Tensor, "out groups"],
        bits: int,
        group_size: int | None,
        group_index: Int[Tensor, " in"] | None = None,
        input_scale: Float[Tensor, " in"] | None = None,
    ) -> QuantizedWeight:
        """Pack codes in 0 .. 2**bits - 1. Symmetric codes are given offset by 2**(bits-1), with that zero point.

        Loses nothing: scales are stored as float16 only if all of them are float16 numbers (find_scale_zero rounds them
        so). ValueError if shapes do not fit, a code or zero point needs more than `bits` bits, or a scale is not > 0.
        """
        check_bits(bits)
        if codes.dim() != 2:
            raise ValueError(f"codes must have shape [out, in], got {list(codes.shape)}")
        out_features, in_features = codes.shape
        group_size = resolve_group_size(group_size, in_features)
        grid = (out_features, math.ceil(in_features / group_size))
        half = _check_grid(codes, scale, zero_point, bits, grid)
        _check_columns("group_index", group_index, in_features)
        _check_columns("input_scale", input_scale, in_features)
        if group_index is not None and in_features:
            lowest, highest = to_host(group_index.aminmax())
            if not 0 <= lowest <= highest < grid[1]:
                raise ValueError(f"group_index must lie in 0..{grid[1] - 1}, got {lowest}..{highest}")
        return cls(
            packed=pack(codes, bits, look=False),
            scale=scale.half() if half else scale.float(),
            packed_zero_point=pack(zero_point.flatten().to(torch.uint8), bits, look=False),
            bits=bits,
            group_size=group_size,
            shape=(out_features, in_features),
            group_index=None if group_index is None else group_index.to(torch.int32),
            input_scale=None if input_scale is None else input_scale.float(),
        )

    def codes(self) -> UInt8[Tensor, "out in"]:
        """The codes, one per byte."""
        return unpack(self.packed, self.bits, self.shape[1])

    @property
    def zero_point(self) -> Int[Tensor, "out groups"]:
        """int32, unpacked."""
        count = self.scale.numel()
        return unpack(self.packed_zero_point, self.bits, count).view(self.scale.shape).to(torch.int32)

    def dequantize(self) -> Float[Tensor, "out in"]:
        """The float32 weight to multiply the original inputs with."""
        weight = dequantize_groups(self.codes(), self.scale, self.zero_point, self.group_size, self.group_index)
        return weight if self.input_scale is None else weight / self.input_scale

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored: codes, scales, zero points and, where present, indices and input scales."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))

    @property
    def bits_per_weight(self) -> float:
        """8 nbytes / (out * in), metadata included."""
        return 8 * self.nbytes / max(self.shape[0] * self.shape[1], 1)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device)
        return QuantizedWeight(**values)

    def split_rows(self, sizes: Sequence[int]) -> list[QuantizedWeight]:
        """Blocks of that many rows, each with memory of its own. Codes stay packed: every row is a stream of bytes."""
        parts = zip(*(tensor.split(sizes) for tensor in (self.packed, self.scale, self.zero_point)), strict=True)
        return [
            replace(
                self,
                packed=packed.clone(),
                scale=scale.clone() if scale.dtype == torch.float16 else _as_half_if_exact(scale),
                packed_zero_point=pack(zero_point.flatten().to(torch.uint8), self.bits, look=False),
                shape=(len(packed), self.shape[1]),
            )
            for packed, scale, zero_point in parts
        ]

    def divide_rows(self, divisor: Float[Tensor, " out"]) -> QuantizedWeight:
        """The same codes on grids that are finer by ``divisor``, again of float16 numbers where these are precise."""
        return replace(self, scale=_as_half_if_exact(round_scale(self.scale.float() / divisor[:, None])))


def _check_grid(codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int, grid: tuple[int, int]) -> bool:
    """Whether all scales are float16 numbers. Everything that depends on values is asked for at once."""
    for name, tensor in (("scale", scale), ("zero_point", zero_point)):
        if tuple(tensor.shape) != grid:
            raise ValueError(f"{name} must have shape [out, groups] = {list(grid)}, got {list(tensor.shape)}")
    if scale.numel() == 0:
        return True
    inside = ((zero_point >= 0) & (zero_point <= 2**bits - 1)).all()
    whole = (zero_point == zero_point.round()).all() if zero_point.is_floating_point() else torch.ones_like(inside)
    fits = codes.amax() <= 2**bits - 1 if codes.numel() else torch.ones_like(inside)
    half = (scale.half().to(scale.dtype) == scale).all()
    positive = (torch.isfinite(scale) & (scale > 0)).all()
    positive, inside, whole, fits, half = to_host([positive, inside, whole, fits, half])
    if not positive:
        check_finite(scale, "scale")
        raise ValueError(f"scale must be positive, got {float(scale.min())}")
    if not inside:
        raise ValueError(f"zero_point must lie in 0..{2**bits - 1}, got {zero_point.min()}..{zero_point.max()}")
    if not whole:
        raise ValueError("zero_point must hold integers")
    if not fits:
        pack(codes, bits)  # raises
    return bool(half)


def _check_columns(name: str, tensor: Tensor | None, in_features: int) -> None:
    if tensor is not None and tuple(tensor.shape) != (in_features,):
        raise ValueError(f"{name} must have shape [in] = [{in_features}], got {list(tensor.shape)}")


def _as_half_if_exact(scale: Tensor) -> Tensor:
    half = scale.half()
    return half if torch.equal(half.to(scale.dtype), scale) else scale.float()
