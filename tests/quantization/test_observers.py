"""Observers against numpy on all of the data at once, which they never keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labsupport.quantization.affine import choose_qparams, dequantize, qparams_from_range, quantize
from labsupport.quantization.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
)

ALL = [MinMaxObserver, MovingAverageObserver, PercentileObserver, MSEObserver]


def heavy_tailed(n=40_000, seed=0):
    """Mostly N(0, 1); one value in a thousand is 20 times larger, as activations of language models are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < 1e-3, 20 * x, x)


def observed(observer, batches):
    for batch in batches:
        observer.observe(batch)
    return observer


def mse(x, qparams):
    return float(((dequantize(quantize(x, qparams), qparams) - x) ** 2).mean())


@pytest.mark.parametrize("symmetric", [False, True])
def test_min_max_equals_choose_qparams_on_everything(symmetric):
    x = heavy_tailed().view(100, 20, 20)
    for axis in (None, 2):
        observer = observed(MinMaxObserver(8, symmetric, axis), x.split(7))
        expected = choose_qparams(x, 8, symmetric, axis)
        assert torch.equal(observer.qparams().scale, expected.scale)
        assert torch.equal(observer.qparams().zero_point, expected.zero_point)
        assert torch.equal(quantize(x, observer.qparams()), quantize(x, expected))


def test_moving_average_equals_the_recurrence():
    batches = heavy_tailed().split(500)
    low, high = batches[0].min().item(), batches[0].max().item()
    for batch in batches[1:]:
        low, high = 0.9 * low + 0.1 * batch.min().item(), 0.9 * high + 0.1 * batch.max().item()
    observer = observed(MovingAverageObserver(momentum=0.1), batches)
    assert observer.low.item() == pytest.approx(low, rel=1e-4)
    assert observer.high.item() == pytest.approx(high, rel=1e-4)
    assert observer.qparams().scale.item() == pytest.approx((high - low) / 255, rel=1e-4)


def assert_quantile(value, data, percentile):
    """Within a bin (1/128) of the two data points that the percentile lies between."""
    ranks = np.clip(percentile / 100 + np.array([-1.5, 1.5]) / len(data), 0, 1)
    below, above = np.quantile(data, ranks[0], method="lower"), np.quantile(data, ranks[1], method="higher")
    assert below - abs(below) / 128 <= value <= above + abs(above) / 128


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_percentile_equals_numpy(percentile, shift):
    x = heavy_tailed() + shift
    observer = observed(PercentileObserver(8, False, percentile), x.split(999))
    low, high = (end.item() for end in observer._range())
    assert_quantile(low, x.numpy(), 100 - percentile)
    assert_quantile(high, x.numpy(), percentile)
    symmetric = observed(PercentileObserver(8, True, percentile), x.split(999))
    assert_quantile(symmetric.qparams().scale.item() * 127, x.abs().numpy(), percentile)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["heavy", "relu", "shifted"])
def test_mse_observer_finds_what_brute_force_finds(bits, symmetric, kind):
    x = heavy_tailed(20_000)
    x = {"heavy": x, "relu": x.relu(), "shifted": x + 4}[kind]
    found = mse(x, observed(MSEObserver(bits, symmetric), x.split(3000)).qparams())
    low, high = min(x.min().item(), 0.0), x.max().item()
    factors = torch.logspace(-7, 0, 50 if symmetric else 24, base=2)
    ends = (
        [(-f * max(-low, high), f * max(-low, high)) for f in factors]
        if symmetric
        else [(f * low, g * high) for f in factors for g in factors]
    )
    best = min(
        mse(x, qparams_from_range(torch.tensor(float(a)), torch.tensor(float(b)), bits, symmetric)) for a, b in ends
    )
    assert found <= best * 1.05


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_beats_min_max_on_held_out_data_with_outliers(bits, symmetric):
    calibration, held_out = heavy_tailed(seed=1), heavy_tailed(seed=2)
    error = {
        cls: mse(held_out, observed(cls(bits, symmetric), calibration.split(1000)).qparams())
        for cls in (MinMaxObserver, MSEObserver)
    }
    error[PercentileObserver] = mse(
        held_out, observed(PercentileObserver(bits, symmetric, 99.9), calibration.split(1000)).qparams()
    )
    assert error[MSEObserver] < 0.7 * error[MinMaxObserver]
    assert error[PercentileObserver] < 0.7 * error[MinMaxObserver]
    assert error[MSEObserver] < 1.05 * error[PercentileObserver]


def test_one_glitch_ruins_min_max_alone():
    """The glitch is in the calibration data only; 8 bits."""
    calibration, held_out = heavy_tailed(seed=1), heavy_tailed(seed=2).clamp(-3, 3)
    calibration[1234] = 3000.0
    batches = calibration.split(400)
    error = {cls: mse(held_out, observed(cls(8), batches).qparams()) for cls in ALL}
    assert error[MinMaxObserver] > 0.5  # nearly all of the variance
    for cls in (MovingAverageObserver, PercentileObserver):
        assert error[cls] < 0.01 * error[MinMaxObserver]


@pytest.mark.parametrize("cls", [MinMaxObserver, PercentileObserver, MSEObserver])
def test_the_order_and_size_of_batches_do_not_matter(cls):
    x = heavy_tailed(5000)
    shuffled = x[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    one, many = observed(cls(4), [x]).qparams(), observed(cls(4), shuffled.split(13)).qparams()
    assert torch.equal(one.scale, many.scale) and torch.equal(one.zero_point, many.zero_point)


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(ALL),
    st.integers(2, 8),
    st.booleans(),
)
def test_any_float32_gives_a_usable_grid(values, cls, bits, symmetric):
    x = torch.from_numpy(values)
    observer = observed(cls(bits, symmetric), [x])
    low, high = observer._range()
    assert min(x.min().item(), 0) <= low.item() or symmetric
    assert high.item() <= max(x.abs().max().item(), 0)
    qparams = observer.qparams()
    assert qparams.scale.item() > 0 and torch.isfinite(qparams.scale)
    assert torch.isfinite(dequantize(quantize(x, qparams), qparams)).all()


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_value_lies_in_the_bin_that_counts_it(values):
    left, right, counts = observed(HistogramObserver(), [torch.from_numpy(values)])._occupied_bins()
    assert (left <= right).all() and (left[1:] >= left[:-1]).all() and int(counts.sum()) == len(values)
    for value in values:
        assert ((left <= float(value)) & (float(value) <= right)).any()


def test_memory_does_not_grow_with_the_data():
    for cls in ALL:
        observer = cls()
        sizes = set()
        for seed in range(5):
            observer.observe(heavy_tailed(3000 * (seed + 1), seed))
            states = [*vars(observer).values(), *vars(getattr(observer, "_extremes", observer)).values()]
            sizes.add(sum(value.numel() for value in states if isinstance(value, torch.Tensor)))
        assert len(sizes) == 1 and max(sizes) <= 2**16 + 8


@pytest.mark.parametrize("cls", ALL)
def test_no_data_no_grid(cls):
    observer = cls()
    with pytest.raises(RuntimeError, match=rf"{cls.__name__} has seen no data: call observe\(x\) before qparams\(\)"):
        observer.qparams()
    observer.observe(torch.empty(0, 4))
    with pytest.raises(RuntimeError, match="has seen no data"):
        observer.qparams()
    observer.observe(torch.zeros(3))
    assert observer.qparams().scale.item() == 1.0


@pytest.mark.parametrize("cls", ALL)
def test_a_refused_batch_changes_nothing(cls):
    observer = observed(cls(), [heavy_tailed(1000)])
    before = observer.qparams()
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        observer.observe(torch.tensor([1e6, float("nan")]))
    with pytest.raises(ValueError, match="x must be one floating-point tensor, got list"):
        observer.observe([heavy_tailed(10)])
    with pytest.raises(ValueError, match=r"got torch.int64"):
        observer.observe(torch.arange(3))
    assert torch.equal(observer.qparams().scale, before.scale) and observer.num_values == 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MinMaxObserver(9), "bits must be an integer"),
        (lambda: MovingAverageObserver(momentum=0), r"momentum must lie in \(0, 1\], got 0"),
        (lambda: PercentileObserver(percentile=50), r"percentile must lie in \(50, 100\], got 50"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_half_precision_and_gradients():
    observer = observed(MSEObserver(), [heavy_tailed(1000).bfloat16(), torch.nn.Parameter(heavy_tailed(1000))])
    assert not observer.qparams().scale.requires_grad and observer.qparams().scale.dtype == torch.float32
