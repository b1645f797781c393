"""Observers: watch calibration data, then say which range the integers should cover.

Every observer has `observe(x)`, called once per batch, and `qparams()`. None keeps the data: the state is a few
numbers, or one histogram of fixed size, however much is observed. Nagel et al. 2021, https://arxiv.org/abs/2106.08295,
section 3.1, compares the choices: a wide range rounds coarsely, a narrow one clips.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.numerics.checks import check_bits, check_finite
from labsupport.quantization.affine import QParams, qparams_from_range, value_range


class Observer:
    """What all observers share. Subclasses define `_update(x)` and `_range() -> (low, high)`."""

    axis: int | tuple[int, ...] | None = None

    def __init__(self, bits: int = 8, symmetric: bool = False) -> None:
        check_bits(bits)
        self.bits = bits
        self.symmetric = symmetric
        self.num_values = 0

    def observe(self, x: Float[Tensor, "*shape"]) -> None:
        """Take one batch into account. An empty batch changes nothing. ValueError unless x is a finite float tensor."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be one floating-point tensor, got {given}; call observe once for each batch")
        if x.numel() > 0:
            check_finite(x)
        self.take(x)

    def take(self, x: Float[Tensor, "*shape"]) -> None:
        """`observe` of a batch that is known to be finite."""
        if x.numel() > 0:
            self._update(x.detach().float())
            self.num_values += x.numel()

    def qparams(self) -> QParams:
        """The grid for what was observed. RuntimeError before any data."""
        if self.num_values == 0:
            raise RuntimeError(f"{type(self).__name__} has seen no data: call observe(x) before qparams()")
        low, high = self._range()
        return qparams_from_range(low, high, self.bits, self.symmetric, axis=self.axis)

    def _update(self, x: Tensor) -> None:
        raise NotImplementedError

    def _range(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class MinMaxObserver(Observer):
    """Covers everything ever seen: nothing is clipped, and one outlier makes every step coarse.

    axis: the dimension(s) that keep their own range, as in choose_qparams.
    """

    def __init__(self, bits: int = 8, symmetric: bool = False, axis: int | tuple[int, ...] | None = None) -> None:
        super().__init__(bits, symmetric)
        self.axis = axis
        self.low = self.high = torch.empty(0)

    def _update(self, x: Tensor) -> None:
        low, high = value_range(x, self.axis)
        if self.num_values:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self.low, self.high = low, high

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class MovingAverageObserver(MinMaxObserver):
    """Exponential moving average of each batch's minimum and maximum: an unusual batch fades away again.

    momentum: the weight of the newest batch, 0 < momentum <= 1.
    """

    def __init__(
        self,
        bits: int = 8,
        symmetric: bool = False,
        axis: int | tuple[int, ...] | None = None,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(bits, symmetric, axis)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must lie in (0, 1], got {momentum}")
        self.momentum = momentum

    def _update(self, x: Tensor) -> None:
        low, high = value_range(x, self.axis)
        if self.num_values:
            low, high = torch.lerp(self.low, low, self.momentum), torch.lerp(self.high, high, self.momentum)
        self.low, self.high = low, high


class HistogramObserver(Observer):
    """Counts in bins whose width is 1/128 of their value, for every float32; one range per tensor.

    A value's bin is the upper half of its float32 bits (sign, exponent, 7 bits of mantissa: a truncated bfloat16). So
    the bins never have to be rescaled, an outlier of 3000 costs values around 1 no resolution, and the counts do not
    depend on the order or size of the batches. The state is 2**16 integers.
    """

    def __init__(self, bits: int = 8, symmetric: bool = False) -> None:
        super().__init__(bits, symmetric)
        self.counts = torch.zeros(2**16, dtype=torch.int64)
        self._extremes = MinMaxObserver(bits, symmetric)

    def _update(self, x: Tensor) -> None:
        self._extremes.observe(x)
        bins = (x.flatten().cpu().view(torch.int32) >> 16) & 0xFFFF
        self.counts += torch.bincount(bins, minlength=2**16)

    def _occupied_bins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lower edge, upper edge (float64, ascending, within the observed range) and count of each bin in use."""
        codes = self.counts.nonzero().squeeze(-1)
        inner = (codes << 16).to(torch.int32).view(torch.float32).double()
        outer = _outer_edge(codes)
        low, high = (extreme.double().cpu() for extreme in self._extremes._range())
        left, order = torch.minimum(inner, outer).sort(stable=True)
        right = torch.maximum(inner, outer)[order]
        return left.clamp(low, high), right.clamp(low, high), self.counts[codes][order]


class PercentileObserver(HistogramObserver):
    """Clip the rarest values: the range ends at a percentile of what was seen (of |x|, if symmetric).

    percentile: 50 < percentile <= 100. Asymmetric: from percentile 100 - p to percentile p.
    """

    def __init__(self, bits: int = 8, symmetric: bool = False, percentile: float = 99.99) -> None:
        super().__init__(bits, symmetric)
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], got {percentile}")
        self.percentile = percentile

    def _range(self) -> tuple[Tensor, Tensor]:
        left, right, counts = self._occupied_bins()
        fraction = self.percentile / 100
        if not self.symmetric:
            low, high = _quantile(left, right, counts, 1 - fraction), _quantile(left, right, counts, fraction)
            return low.float(), high.float()
        inner, order = torch.minimum(left.abs(), right.abs()).sort(stable=True)
        high = _quantile(inner, torch.maximum(left.abs(), right.abs())[order], counts[order], fraction).float()
        return -high, high


class MSEObserver(HistogramObserver):
    """The range with the smallest mean squared error on what was seen, from rounding and clipping together.

    Ranges are tried from the whole one down to 2**-16 of it, first in factors of 2 (asymmetric: all pairs of ends, as
    a search along one end at a time stops at ranges that round everything to 0), then each end in factors of
    2**(1/16). The error of a range comes from the histogram, with the values spread evenly in each bin.
    """

    def _range(self) -> tuple[Tensor, Tensor]:
        low, high = (extreme.double().cpu() for extreme in self._extremes._range())
        bins = self._occupied_bins()

        def error(low: Tensor, high: Tensor) -> float:
            return _expected_error(*bins, qparams_from_range(low, high, self.bits, self.symmetric))

        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            low, high = torch.minimum(low, -high), torch.maximum(-low, high)
        octaves = [2.0**-i for i in range(17)]
        pairs = [(f, f) for f in octaves] if self.symmetric else [(f, g) for f in octaves for g in octaves]
        f, g = min(pairs, key=lambda pair: error(low * pair[0], high * pair[1]))
        if self.symmetric:
            f = g = min(_around(f), key=lambda f: error(low * f, high * f))
        else:
            for _ in range(2):
                g = min(_around(g), key=partial(lambda f, g: error(low * f, high * g), f))
                f = min(_around(f), key=partial(lambda g, f: error(low * f, high * g), g))
        return (low * f).float(), (high * g).float()


def _expected_error(left: Tensor, right: Tensor, counts: Tensor, qparams: QParams) -> float:
    """Mean squared error of a grid, as the exact integral over values spread evenly in each bin.

    In units of the scale, with n(t) the code nearest to t, the antiderivative of (t - n(t))**2 is
    n(t) / 12 + (t - n(t))**3 / 3: a twelfth for each cell passed, and it holds in the clipped tails as well.
    """
    first, last = (code - int(qparams.zero_point) for code in (qparams.qmin, qparams.qmax))
    left, right = left / qparams.scale, right / qparams.scale
    middle, width = (left + right) / 2, right - left
    nearest_left, nearest_right, nearest = (t.round().clamp(first, last) for t in (left, right, middle))
    integral = (nearest_right - nearest_left) / 12 + ((right - nearest_right) ** 3 - (left - nearest_left) ** 3) / 3
    # In bins far narrower than a step the difference would be lost in rounding: use their midpoint instead.
    mean = torch.where(width > 1e-3, integral / width.clamp(min=1e-3), (middle - nearest) ** 2)
    return float((mean * counts).sum() / counts.sum() * qparams.scale**2)


def _around(factor: float) -> list[float]:
    """Factors within an octave of this one, none above 1."""
    return [min(factor * 2.0 ** (i / 16), 1.0) for i in range(-15, 16)]


def _outer_edge(codes: Tensor) -> Tensor:
    """The edge of each bin that is farther from 0: where the next bin of the same sign begins."""
    largest = torch.finfo(torch.float32).max
    return ((codes + 1) << 16).to(torch.int32).view(torch.float32).double().nan_to_num(0.0, largest, -largest)


def _quantile(left: Tensor, right: Tensor, counts: Tensor, fraction: float) -> Tensor:
    """The value below which this fraction of the counts lies; counts spread evenly within ascending bins."""
    total = counts.cumsum(0)
    target = fraction * total[-1]
    index = min(int(torch.searchsorted(total.double(), target.double())), len(counts) - 1)
    inside = 1 - (total[index] - target) / counts[index]
    return left[index] + (right[index] - left[index]) * inside.clamp(0, 1)
