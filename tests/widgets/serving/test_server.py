"""The simulated server: the engine's simulation, with refusals."""

from __future__ import annotations

import pytest

from labsupport.inference.arrivals import poisson_requests
from labsupport.inference.simulate import SimRequest, affine_cost, simulate
from labsupport.serving.monitor import percentiles
from labsupport.widgets.serving.server import NO_BOUND, StepSeconds, capacity, simulate_server

COST = StepSeconds(0.02, 5e-4, 1e-3)


@pytest.mark.parametrize("rate", [0.5, 3.0, 6.0, 60.0])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_without_a_bound_it_is_the_simulation_of_the_engine(rate, slots):
    requests = poisson_requests(1.0, 80, seed=2)
    sped_up = [SimRequest(each.arrival / rate, each.prompt_tokens, each.output_tokens) for each in requests]
    expected = simulate(sped_up, "in_flight", slots, affine_cost(COST.base, COST.per_prompt_token, COST.per_row))
    load = simulate_server(requests, rate, slots, NO_BOUND, COST)
    assert load.answered == 80 and load.refused == 0
    assert load.tokens_per_second == pytest.approx(expected.throughput)
    for mine, theirs in (
        (load.first_token, percentiles([each.ttft for each in expected.results])),
        (load.whole_answer, percentiles([each.latency for each in expected.results])),
    ):
        assert (mine.p50, mine.p95, mine.mean, mine.maximum) == pytest.approx(
            (theirs.p50, theirs.p95, theirs.mean, theirs.maximum)
        )


def test_who_comes_when_all_places_are_taken_is_refused():
    at_once = [SimRequest(0.0, 10, 20)] * 12
    load = simulate_server(at_once, 1.0, 2, 3, COST)
    assert load.answered == 5 and load.refused == pytest.approx(7 / 12)
    patient = [SimRequest(100.0 * k, 10, 20) for k in range(12)]
    assert simulate_server(patient, 1.0, 1, 0, COST).refused == 0


def test_a_place_is_free_when_the_last_step_of_a_request_is_over():
    prefill = COST.base + 10 * COST.per_prompt_token
    done = prefill + 3 * (COST.base + COST.per_row)  # four tokens: the first by the prompt's step
    for arrival, refused in ((done - 1e-6, 0.5), (done + 1e-6, 0.0)):
        pair = [SimRequest(0.0, 10, 4), SimRequest(arrival, 10, 4)]
        assert simulate_server(pair, 1.0, 1, 0, COST).refused == refused


def test_who_comes_at_the_very_end_of_a_request_finds_its_place_free():
    even = StepSeconds(0.25, 0.0, 0.0)  # sums of quarters are exact
    pair = [SimRequest(0.0, 10, 4), SimRequest(1.0, 10, 4)]
    assert simulate_server(pair, 1.0, 1, 0, even).refused == 0


def test_a_bound_on_the_queue_bounds_the_wait():
    requests = poisson_requests(1.0, 200, (32, 32), (20, 20), seed=1)
    service = 20 * (COST.base + 4 * COST.per_row) + 4 * 32 * COST.per_prompt_token
    for waiting in (0, 8):
        load = simulate_server(requests, 50.0, 4, waiting, COST)
        assert load.whole_answer.maximum <= service * (2 + waiting / 4) + COST.base
    unbounded = simulate_server(requests, 50.0, 4, NO_BOUND, COST)
    assert unbounded.whole_answer.maximum > 10 * service and unbounded.refused == 0


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_capacity_is_what_an_endless_queue_finishes(slots):
    requests = poisson_requests(1.0, 600, seed=3)
    load = simulate_server(requests, 1e6, slots, NO_BOUND, COST)
    tokens = sum(each.output_tokens for each in requests)
    assert load.tokens_per_second / tokens * 600 == pytest.approx(capacity(requests, slots, COST), rel=0.05)
