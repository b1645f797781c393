"""Rates that rise to their peak and fall to zero, and optimizers that follow them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labsupport.lm.schedule import rate_share, set_rates


@pytest.mark.parametrize(("warmup", "decay_from", "peak"), [(60, None, 59), (11, 10, 10), (1, 0, 0)])
def test_the_rate_rises_to_its_peak_and_falls_to_zero(warmup: int, decay_from: int | None, peak: int) -> None:
    shares = [rate_share(step, 500, warmup, decay_from) for step in range(500)]
    assert max(shares) == 1.0 and shares.index(1.0) == peak
    assert shares[: peak + 1] == sorted(shares[: peak + 1]) and shares[peak:] == sorted(shares[peak:], reverse=True)
    assert shares[0] == pytest.approx(1 / warmup) and 0 < shares[-1] < 0.01


@given(steps=st.integers(1, 60), warmup=st.integers(1, 80), early=st.integers(0, 80))
def test_every_step_has_a_rate_above_zero(steps: int, warmup: int, early: int) -> None:
    shares = [rate_share(step, steps, warmup, max(0, warmup - early)) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)


def test_each_group_keeps_its_own_peak() -> None:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    groups: list[dict[str, Any]] = [{"params": weights[:1], "lr": 8.0}, {"params": weights[1:2]}]
    optimizers = [torch.optim.SGD(groups, lr=1.0), torch.optim.SGD(weights[2:], lr=0.5)]
    for share in (0.5, 1.0, 0.25):
        set_rates(optimizers, share)
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        assert rates == [8 * share, share, share / 2]
