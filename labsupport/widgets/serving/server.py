"""In-flight batching behind a bounded queue, simulated: what the load curve draws."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from labsupport.inference.simulate import SimRequest
from labsupport.serving.monitor import Percentiles, percentiles

NO_BOUND = 10**9  # on the number of waiting requests


@dataclass(frozen=True)
class StepSeconds:
    """What a step costs: ``base``, and more for each prompt token that is processed and each row that decodes."""

    base: float
    per_prompt_token: float
    per_row: float

    def __post_init__(self) -> None:
        if self.base <= 0 or min(self.per_prompt_token, self.per_row) < 0:
            raise ValueError(f"base must be above 0 and the others at least 0 seconds; got {self}")


@dataclass(frozen=True)
class Load:
    """What a server did with the requests offered to it, in the units of the load curve's panels."""

    answered: int
    refused: float  # share of the requests
    tokens_per_second: float
    first_token: Percentiles | None  # seconds from arrival
    whole_answer: Percentiles | None


def simulate_server(
    requests: Sequence[SimRequest], rate: float, max_num_seqs: int, max_waiting: int, cost: StepSeconds
) -> Load:
    """In-flight batching behind a bounded queue; the ``requests`` arrive ``rate`` times as fast as they say.

    Like `labsupport.inference.simulate.simulate` with the policy "in_flight", and with refusals: a request that arrives
    while ``max_num_seqs`` + ``max_waiting`` others are unfinished is refused. Steps in which nothing changes are
    computed together, so that moving a slider takes milliseconds.
    """
    arrivals = [(request.arrival / rate, request) for request in sorted(requests, key=lambda each: each.arrival)]
    waiting: deque[tuple[float, SimRequest]] = deque()
    running: list[tuple[int, int, float]] = []  # step after which it is done, number, arrival
    firsts: list[float] = []
    wholes: list[float] = []
    tokens = 0
    clock, step, coming = 0.0, 0, 0

    def arrive(until: float) -> None:
        nonlocal coming
        while coming < len(arrivals) and arrivals[coming][0] <= until:
            if len(running) + len(waiting) < max_num_seqs + max_waiting:
                waiting.append(arrivals[coming])
            coming += 1

    while coming < len(arrivals) or waiting or running:
        if not running and not waiting:
            clock = max(clock, arrivals[coming][0])
            arrive(clock)
        rows, prompts = len(running), 0
        new: list[float] = []
        while waiting and len(running) < max_num_seqs:
            arrival, request = waiting.popleft()
            heapq.heappush(running, (step + request.output_tokens, len(firsts) + len(new), arrival))
            new.append(arrival)
            prompts += request.prompt_tokens
            tokens += request.output_tokens
        seconds = cost.base + cost.per_prompt_token * prompts + cost.per_row * rows
        steps = 1
        if not new:
            steps = running[0][0] - step
            if len(running) < max_num_seqs and coming < len(arrivals):  # the next arrival is admitted at once
                steps = min(steps, max(1, math.ceil((arrivals[coming][0] - clock) / seconds)))
        arrive(math.nextafter(clock + steps * seconds, 0))  # requests done by the end of the step are still counted
        clock, step = clock + steps * seconds, step + steps
        firsts += [clock - arrival for arrival in new]
        while running and running[0][0] == step:
            wholes.append(clock - heapq.heappop(running)[2])
        arrive(clock)
    answered = len(wholes)
    return Load(
        answered, 1 - answered / len(arrivals), tokens / (clock - arrivals[0][0]), percentiles(firsts),
        percentiles(wholes),
    )  # fmt: skip


def capacity(requests: Sequence[SimRequest], max_num_seqs: int, cost: StepSeconds) -> float:
    """Requests per second that a full batch finishes."""
    prompt = sum(request.prompt_tokens for request in requests) / len(requests)
    output = sum(request.output_tokens for request in requests) / len(requests)
    # each request shares its steps with the others of a full batch, and adds its prompt and its rows
    return 1 / (cost.base * output / max_num_seqs + cost.per_prompt_token * prompt + cost.per_row * (output - 1))
