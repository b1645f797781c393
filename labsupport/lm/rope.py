"""Rotary frequencies for contexts longer than those of training: what checkpoints call ``rope_scaling``.

Rotary embedding turns pair i of a head by position · theta_i, where theta_i = theta^(-2i / head_dim): the wavelengths
2π / theta_i grow geometrically, from a few tokens to more than the context. Each method changes the frequencies, so
that positions beyond those of training give angles that the model knows:

    linear   all are divided by ``factor``                                      (Chen et al. 2023, arXiv 2306.15595)
    dynamic  theta grows with the length of the text, once it exceeds training  (NTK-aware; bloc97, emozilla 2023)
    yarn     long wavelengths as in linear, short ones unchanged, a ramp
             between; attention is sharpened                                    (Peng et al. 2023, arXiv 2309.00071)
    llama3   the same idea with another ramp, for Llama 3.1 and later           (Grattafiori et al. 2024, 2407.21783)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

KINDS = ("linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """One method and its numbers.

    Raises:
        ValueError: an unknown ``kind``, or a number that the method cannot use.
    """

    kind: str
    factor: float
    original_positions: int  # the context of training (dynamic: the length from which theta grows)
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_positions / this are divided by factor
    high_freq_factor: float = 4.0  # llama3: those below original_positions / this are left alone
    beta_fast: float = 32.0  # yarn: pairs that turn more often than this in the context of training are left alone
    beta_slow: float = 1.0  # yarn: those that turn less often are divided by factor
    attention_factor: float = 1.0  # yarn: cosine and sine times this, so scores times its square
    truncate: bool = True  # yarn: the ends of the ramp are whole pairs

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rope scaling must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if not self.factor >= 1:
            raise ValueError(f"factor of rope scaling must be at least 1; got {self.factor}")
        if self.original_positions < 1:
            raise ValueError(f"original_positions of rope scaling must be at least 1; got {self.original_positions}")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor must lie between 0 and high_freq_factor; got {self.low_freq_factor} and "
                f"{self.high_freq_factor}"
            )


def rotary_frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    length: int = 0,
    device: torch.device | str | None = None,
) -> Float[Tensor, " head_dim/2"]:
    """theta_i of each pair, in radians a token, changed by ``scaling`` (``length``: of the text, for ``dynamic``)."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    if scaling is None:
        return theta**-exponents
    if scaling.kind == "dynamic":
        longer = max(length / scaling.original_positions, 1.0)
        grown = theta * (scaling.factor * longer - (scaling.factor - 1)) ** (head_dim / (head_dim - 2))
        return grown**-exponents
    frequencies = theta**-exponents
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    keep = _llama3_ramp(frequencies, scaling) if scaling.kind == "llama3" else _yarn_ramp(head_dim, theta, scaling)
    keep = keep.to(frequencies.device)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def _llama3_ramp(frequencies: Float[Tensor, " pairs"], scaling: RopeScaling) -> Float[Tensor, " pairs"]:
    """1 where a frequency stays, 0 where it is divided, linear in the turns within the context of training."""
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_ramp(head_dim: int, theta: float, scaling: RopeScaling) -> Float[Tensor, " pairs"]:
    """The same, linear in the number of the pair (YaRN, section 3.2, as its authors' code has it)."""

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(scaling.original_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    return 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """0.1 ln(factor) + 1 (YaRN, eq. 22), or the quotient that DeepSeek's two numbers give."""

    def sharpened(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return sharpened(mscale) / sharpened(mscale_all_dim) if mscale and mscale_all_dim else sharpened(1.0)
