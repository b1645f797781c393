"""FP8: eight bits as a tiny floating-point number instead of an integer (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433).

An integer grid has the same step everywhere; FP8's step grows with the value, so its *relative* error is bounded over
many octaves. Integers win where values fill their range (weights, Gaussians), FP8 where they spread over many octaves.
Rounding to a fixed step of 1/16 within ±448 is not FP8: that has 14,337 levels, E4M3 has 253. The casts are torch's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.numerics.checks import check_finite
from labsupport.quantization.affine import value_range


@dataclass(frozen=True)
class FP8Format:
    """Sign, exponent and mantissa bits. Relative rounding error of normal numbers: at most 2**-(mantissa_bits + 1)."""

    name: str
    dtype: torch.dtype
    exponent_bits: int
    mantissa_bits: int
    max: float

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def min_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def max_relative_error(self) -> float:
        return 2.0 ** -(self.mantissa_bits + 1)


# E4M3 gives up the infinities and all but two NaN codes for one more octave; E5M2 keeps the IEEE rules.
_FORMATS = {
    "e4m3": FP8Format("e4m3", torch.float8_e4m3fn, exponent_bits=4, mantissa_bits=3, max=448.0),
    "e5m2": FP8Format("e5m2", torch.float8_e5m2, exponent_bits=5, mantissa_bits=2, max=57344.0),
}


@dataclass(frozen=True, eq=False)
class FP8Tensor:
    """values in FP8, and the float32 scale to multiply them by; 1 byte per element plus 4 per scale."""

    values: Tensor
    scale: Float[Tensor, "*scales"]

    def dequantize(self) -> Float[Tensor, "*shape"]:
        return fp8_dequantize(self)

    @property
    def nbytes(self) -> int:
        return self.values.numel() + self.scale.numel() * self.scale.element_size()


def fp8_format(name: str) -> FP8Format:
    """The facts of "e4m3" (weights and activations) or "e5m2" (gradients)."""
    if name not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, _FORMATS))}, got {name!r}")
    return _FORMATS[name]


def fp8_quantize(
    x: Float[Tensor, "*shape"],
    format: str = "e4m3",
    axis: int | tuple[int, ...] | None = None,
    scale: Float[Tensor, "*scales"] | float | None = None,
) -> FP8Tensor:
    """x / scale in FP8, where the scale maps the largest |x| to the largest finite code.

    axis: the dimension(s) that keep their own scale, as in choose_qparams; None: a single scale.
    scale: a calibrated scale to use instead; 1.0 shows the bare format. Values beyond the largest code saturate, by an
        explicit clamp, since what a cast does with them differs between formats and devices.

    Raises:
        ValueError: x is not finite, or the scale is not positive.
    """
    spec = fp8_format(format)
    check_finite(x)
    x = x.float()
    if scale is None:
        low, high = value_range(x, axis)
        amax = torch.maximum(-low, high)
        scale = (amax / spec.max).clamp(min=torch.finfo(torch.float32).tiny).masked_fill(amax == 0, 1.0)
    scale = torch.as_tensor(scale, dtype=torch.float32, device=x.device)
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return FP8Tensor((x / scale).clamp(-spec.max, spec.max).to(spec.dtype), scale)


def fp8_dequantize(quantized: FP8Tensor) -> Float[Tensor, "*shape"]:
    """float32 values * scale."""
    largest = torch.finfo(torch.float32).max
    return (quantized.values.float() * quantized.scale).clamp_(-largest, largest)


def fp8_fake_quantize(
    x: Float[Tensor, "*shape"],
    format: str = "e4m3",
    axis: int | tuple[int, ...] | None = None,
    scale: Float[Tensor, "*scales"] | float | None = None,
) -> Float[Tensor, "*shape"]:
    """x through FP8 and back, in x's own dtype."""
    largest = torch.finfo(x.dtype).max
    return fp8_dequantize(fp8_quantize(x, format, axis, scale)).clamp_(-largest, largest).to(x.dtype)


def fp8_codes(format: str = "e4m3") -> Float[Tensor, " 256"]:
    """The value of each of the 256 codes in order: code 0 is 0.0, code 128 is -0.0; NaN and infinite codes included."""
    return torch.arange(256, dtype=torch.uint8).view(fp8_format(format).dtype).float()
