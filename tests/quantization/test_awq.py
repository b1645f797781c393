"""AWQ: the search against brute force on real outputs, and against what the document called AWQ."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labsupport.quantization.awq import (
    NUM_RATIOS,
    InputStats,
    awq_quantize,
    channel_scale,
    clip_weight,
    row_errors,
    search_scale,
    search_scale_on_outputs,
)
from labsupport.quantization.rtn import rtn_quantize


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_outliers(tokens: int, features: int = 256, seed: int = 0, outliers: int = 5) -> Tensor:
    """A few channels ten times as large as the others, always the same ones."""
    x = gaussian(tokens, features, seed=seed)
    x[:, :: features // outliers] *= 10
    return x


def output_nmse(quantized: Tensor, weight: Tensor, x: Tensor) -> float:
    return float((x @ (quantized - weight).T).square().sum() / (x @ weight.T).square().sum())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12), columns=st.integers(1, 48), group_size=st.one_of(st.none(), st.integers(1, 50)),
    bits=st.integers(2, 8), clip=st.booleans(), outlier=st.floats(0.01, 100), seed=st.integers(0, 1000),
)  # fmt: skip
def test_never_worse_than_ratio_0_on_its_own_inputs(
    rows: int, columns: int, group_size: int | None, bits: int, clip: bool, outlier: float, seed: int
) -> None:
    """The document's AWQ takes ratio 0.5 unsearched, and is 3.5 times worse than plain rounding."""
    weight, x = gaussian(rows, columns, seed=seed), gaussian(60, columns, seed=seed + 1)
    x[:, 0] *= outlier
    result = awq_quantize(weight, x, bits, group_size, clip=clip).dequantize()
    rtn = rtn_quantize(weight, bits, group_size).dequantize()
    assert output_nmse(result, weight, x) <= output_nmse(rtn, weight, x) * (1 + 1e-3) + 1e-10


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("clip", [False, True])
def test_better_than_rounding_on_held_out_inputs(bits: int, clip: bool) -> None:
    weight, held_out = gaussian(128, 256), with_outliers(2048, seed=2)
    result = awq_quantize(weight, with_outliers(2048, seed=1), bits, 64, clip=clip).dequantize()
    rtn = rtn_quantize(weight, bits, 64).dequantize()
    assert output_nmse(result, weight, held_out) < 0.85 * output_nmse(rtn, weight, held_out)


def test_weight_error_would_choose_no_scaling() -> None:
    weight, x = gaussian(128, 256), with_outliers(2048)
    awq, rtn = awq_quantize(weight, x, 4, 128).dequantize(), rtn_quantize(weight, 4, 128).dequantize()
    assert output_nmse(awq, weight, x) < 0.85 * output_nmse(rtn, weight, x)
    assert (awq - weight).square().sum() > (rtn - weight).square().sum()


def test_the_search_equals_trying_all_ratios_on_real_outputs() -> None:
    weight, x = gaussian(300, 80), with_outliers(500, 80)  # more rows than one chunk, a last group of 16
    search = search_scale(weight, InputStats.of([x]), 4, 32)
    expected = []
    for i in range(20):
        scale = x.abs().mean(0) ** (i / 20)
        scale = scale / (scale.max() * scale.min()).sqrt()
        quantized = rtn_quantize(weight * scale, 4, 32).dequantize() / scale
        expected.append(float((x @ quantized.T - x @ weight.T).square().sum() / len(x)))
    assert search.ratios == [i / 20 for i in range(NUM_RATIOS)]
    assert search.errors == pytest.approx(expected, rel=1e-3)
    assert search.ratio == expected.index(min(expected)) / 20 and 0 < search.ratio < 1
    assert torch.allclose(search.scale, channel_scale(x.abs().mean(0), search.ratio))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300), columns=st.integers(1, 48), group_size=st.integers(1, 50), bits=st.integers(2, 8),
    outlier=st.floats(0.01, 100), seed=st.integers(0, 1000),
)  # fmt: skip
def test_the_fast_search_equals_the_papers(
    rows: int, columns: int, group_size: int, bits: int, outlier: float, seed: int
) -> None:
    weight, x = gaussian(rows, columns, seed=seed), gaussian(60, columns, seed=seed + 1)
    x[:, 0] *= outlier
    paper, fast = (
        search_scale_on_outputs(weight, x, bits, group_size),
        search_scale(weight, InputStats.of([x]), bits, group_size),
    )
    power = float((x @ weight.T).square().sum(1).mean())
    assert fast.errors == pytest.approx(paper.errors, rel=1e-3, abs=1e-9 * power)
    best = min(paper.errors)
    assert paper.errors[fast.ratios.index(fast.ratio)] == pytest.approx(best, rel=1e-3, abs=1e-9 * power)


def test_layers_that_share_inputs_share_the_scale() -> None:
    x = with_outliers(500, 64)
    first, second = gaussian(16, 64, seed=1), 5 * gaussian(48, 64, seed=2)
    together = search_scale(torch.cat([first, second]), InputStats.of([x]), 4, 32)
    apart = [search_scale(weight, InputStats.of([x]), 4, 32) for weight in (first, second)]
    sums = [a + b for a, b in zip(apart[0].errors, apart[1].errors, strict=True)]
    assert together.errors == pytest.approx(sums, rel=1e-4)
    assert together.ratio == sums.index(min(sums)) / 20


def test_scale_is_normalized_and_survives_silent_channels() -> None:
    mean_abs = torch.tensor([0.0, 1e-9, 1.0, 50.0])
    for ratio in (0.0, 0.5, 0.95):
        scale = channel_scale(mean_abs, ratio)
        assert torch.isfinite(scale).all() and (scale > 0).all()
        assert float(scale.max() * scale.min()) == pytest.approx(1, rel=1e-5)
    assert torch.equal(channel_scale(mean_abs, 0.0), torch.ones(4))
    x = gaussian(100, 4) * mean_abs
    assert torch.isfinite(awq_quantize(gaussian(3, 4), x).dequantize()).all()


def test_dequantize_is_the_weight_for_the_original_inputs() -> None:
    weight, x = gaussian(32, 64), with_outliers(500, 64)
    result = awq_quantize(weight, x, 4, 32)
    assert result.input_scale is not None and result.input_scale.max() > 1.5
    stored = result.dequantize() * result.input_scale  # what the codes hold, for inputs divided by the scale
    assert torch.allclose((x / result.input_scale) @ stored.T, x @ result.dequantize().T, atol=1e-3)
    assert output_nmse(result.dequantize(), weight, x) < 0.02
    assert output_nmse(stored, weight, x) > 0.1


def test_each_row_and_group_has_a_scale_of_its_own() -> None:
    """One range for a group of all rows ruins the small rows: the document's loses more than all of them."""
    weight = gaussian(32, 128) * torch.logspace(-2, 0, 32)[:, None]
    result = awq_quantize(weight, with_outliers(500, 128), 4, 32)
    assert result.scale.shape == result.zero_point.shape == (32, 4)
    per_row = (result.dequantize() - weight).square().sum(1) / weight.square().sum(1)
    assert per_row.max() < 0.1


def test_zero_and_one_sided_groups_stay_finite() -> None:
    weight = gaussian(8, 64)
    weight[:, :16] = 0.0
    weight[:, 16:32] = weight[:, 16:32].abs() + 5
    result = awq_quantize(weight, with_outliers(200, 64), 4, 16)
    assert torch.isfinite(result.dequantize()).all() and (result.dequantize()[:, :16] == 0).all()
    assert 0 <= int(result.zero_point.min()) <= int(result.zero_point.max()) <= 15


def test_any_leading_dimensions() -> None:
    weight, x = gaussian(8, 32), with_outliers(60, 32)
    flat, shaped = awq_quantize(weight, x, 4, 16), awq_quantize(weight, x.view(3, 4, 5, 32), 4, 16)
    assert torch.equal(flat.dequantize(), shaped.dequantize())
    batched = InputStats.of([x[:7], x[7:].view(1, 53, 32)])
    assert torch.allclose(batched.gram, InputStats.of([x]).gram, atol=1e-4)
    assert torch.allclose(batched.mean_abs, x.abs().mean(0))


def test_stats_of_scaled_inputs() -> None:
    x, scale = with_outliers(100, 16), torch.rand(16, generator=torch.Generator().manual_seed(0)) + 0.5
    expected, given_stats = InputStats.of([x / scale]), InputStats.of([x]).scaled(scale)
    assert torch.allclose(given_stats.gram, expected.gram, atol=1e-4)
    assert torch.allclose(given_stats.mean_abs, expected.mean_abs, atol=1e-5)


def test_clipping_tries_each_group_by_itself() -> None:
    """Against brute force: each row and group over the ten shrunk ranges, with its own inputs only."""
    weight, x = gaussian(6, 48) ** 3, gaussian(200, 48, seed=1)  # heavy tails: worth clipping at 3 bits
    clipped = clip_weight(weight, InputStats.of([x]), 3, 16)
    changed = 0
    for row in range(6):
        if torch.equal(clipped[row], weight[row]):
            continue
        for first in range(0, 48, 16):
            part, inputs = weight[row : row + 1, first : first + 16], x[:, first : first + 16]
            tried = [part.clamp(-limit, limit) for i in range(10) if (limit := float(part.abs().max()) * (1 - i / 20))]
            errors = [(inputs @ (rtn_quantize(t, 3, 16).dequantize() - part).T).square().sum() for t in tried]
            best = tried[int(torch.stack(errors).argmin())]
            assert torch.allclose(clipped[row, first : first + 16], best[0], atol=1e-6)
            changed += not torch.equal(best, part)
    assert changed >= 6


def test_clipping_never_raises_a_rows_error() -> None:
    weight = gaussian(64, 96) ** 3
    x = gaussian(300, 8, seed=1) @ gaussian(8, 96, seed=2)  # groups correlate: judged apart, some rows get worse
    stats = InputStats.of([x])
    before, after = (
        row_errors(rtn_quantize(w, 3, 32).dequantize() - weight, stats.gram)
        for w in (weight, clip_weight(weight, stats, 3, 32))
    )
    assert (after <= before * (1 + 1e-3)).all() and after.sum() < 0.9 * before.sum()


def test_arguments_are_left_as_they_are() -> None:
    weight, x = gaussian(8, 32), with_outliers(60, 32)
    before = weight.clone(), x.clone()
    awq_quantize(weight, x)
    assert torch.equal(weight, before[0]) and torch.equal(x, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits must be an integer from 2 to 8"),
        ({"group_size": 0}, "group_size must be a positive integer"),
        ({"weight": torch.ones(8)}, r"weight must be a floating-point \[out, in\]"),
        ({"weight": torch.full((2, 8), math.inf)}, "weight must be finite, got 0 NaN and 16 infinite"),
        ({"inputs": torch.ones(4, 7)}, r"inputs must be floating point of shape \[\.\.\., in\] = \[\.\.\., 8\]"),
        ({"inputs": torch.ones(4, 8, dtype=torch.int64)}, "inputs must be floating point"),
        ({"inputs": torch.full((4, 8), math.nan)}, "inputs must be finite"),
        ({"inputs": torch.ones(0, 8)}, "inputs must hold at least one token"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    arguments = {"weight": torch.ones(2, 8), "inputs": torch.ones(4, 8)} | change
    with pytest.raises(ValueError, match=message):
        awq_quantize(**arguments)
