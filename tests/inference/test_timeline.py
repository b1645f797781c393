"""Measures of a simulation, on examples small enough to count by hand."""

from __future__ import annotations

from labsupport.inference.arrivals import SimRequest
from labsupport.inference.simulate import simulate
from labsupport.inference.timeline import Phase


def test_the_timeline_of_a_small_example():
    requests = [SimRequest(0, 1, 3), SimRequest(0, 1, 1), SimRequest(0, 1, 2)]
    E, P, D, X = Phase.EMPTY, Phase.PREFILL, Phase.DECODE, Phase.DONE
    who, phase = simulate(requests, "in_flight", 2).timeline()
    assert who.tolist() == [[0, 0, 0], [1, 2, 2]] and phase.tolist() == [[P, D, D], [P, P, D]]
    who, phase = simulate(requests, "static", 2).timeline()
    assert who.tolist() == [[0, 0, 0, 2, 2], [1, 1, 1, -1, -1]] and phase.tolist() == [[P, D, D, P, D], [P, X, X, E, E]]


def test_measures_of_a_small_example():
    outcome = simulate([SimRequest(2, 5, 3), SimRequest(2.5, 5, 1)], "in_flight", 2)
    assert [step.start for step in outcome.steps] == [2, 3, 4]  # idle until second 2
    assert outcome.makespan == 3 and outcome.throughput == 4 / 3 and outcome.utilization == 4 / 6
    late = outcome.results[1]
    assert (late.admitted, late.ttft, late.latency) == (3, 1.5, 1.5) and late.inter_token.tolist() == []
    assert outcome.results[0].inter_token.tolist() == [1, 1] and outcome.longest_gap == 1
    assert outcome.summary()["mean_ttft"] == 1.25
