"""Simulated workloads: their statistics, and that a seed draws the same requests at every rate."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport.inference.arrivals import SimRequest, poisson_requests


def test_poisson_arrivals():
    requests = poisson_requests(4.0, 5000, (3, 5), (7, 7), seed=1)
    gaps = np.diff([0.0, *(r.arrival for r in requests)])
    assert gaps.mean() == pytest.approx(0.25, rel=0.05) and gaps.std() == pytest.approx(0.25, rel=0.05)
    assert {r.prompt_tokens for r in requests} == {3, 4, 5} and {r.output_tokens for r in requests} == {7}
    assert (
        requests == poisson_requests(4.0, 5000, (3, 5), (7, 7), seed=1) != poisson_requests(4.0, 5000, (3, 5), (7, 7))
    )
    slower = poisson_requests(2.0, 5000, (3, 5), (7, 7), seed=1)  # the same requests, half as dense
    assert [r.arrival for r in slower] == pytest.approx([2 * r.arrival for r in requests])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: SimRequest(-1, 1, 1), "arrival must be"),
        (lambda: SimRequest(float("nan"), 1, 1), "arrival must be"),
        (lambda: SimRequest(0, 0, 1), "prompt_tokens must be at least 1, got 0"),
        (lambda: SimRequest(0, 1, 0), "output_tokens must be at least 1, got 0"),
        (lambda: poisson_requests(0, 5), "rate must be"),
        (lambda: poisson_requests(1, 0), "num_requests must be"),
        (lambda: poisson_requests(1, 5, output_tokens=(9, 8)), "output_tokens must be"),
    ],
)
def test_bad_input_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        function()
