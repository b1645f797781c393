"""Discrete-event simulation of batching: static, in-flight (continuous), and in-flight with chunked prefill.

What a scheduler gains depends on arrivals, on lengths, on the number of slots and on what a step costs. Here all four
are arguments, so that a claim can be simulated before it is made:

    static      a batch starts when the one before is done, and ends with its longest member (FasterTransformer)
    in_flight   a slot that comes free is taken in the next step (Orca: Yu et al. 2022, OSDI, section 3)
    chunked     as in_flight, but a step takes at most `token_budget` tokens: the running requests' first, what is left
                goes to prompts, piece by piece (Sarathi-Serve: Agrawal et al. 2024, arXiv 2403.02310, algorithm 3)

A request's prompt and its first token come from its prefill; every later step yields one token of each running request.
So an answer of n tokens takes n steps, more only where its prompt is cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, TypeAlias

import numpy as np

Policy = Literal["static", "in_flight", "chunked"]
POLICIES: tuple[Policy, ...] = ("static", "in_flight", "chunked")
StepCost: TypeAlias = Callable[[int, int], float]  # (prompt tokens, decoded rows) of a step -> its seconds


class Phase(IntEnum):
    """What a slot does in a step."""

    EMPTY = 0
    PREFILL = 1  # a prompt, or a piece of one; with its last piece comes the first token
    DECODE = 2
    DONE = 3  # static batching: the answer is complete, the slot waits for the rest of its batch


@dataclass(frozen=True)
class SimRequest:
    """Raises ValueError if a number is out of range."""

    arrival: float  # seconds
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.arrival < float("inf"):
            raise ValueError(f"arrival must be a finite number of seconds, at least 0, got {self.arrival}")
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class RequestResult:
    """What became of a request, in seconds: points in time since the start of the simulation, or durations."""

    request: SimRequest
    admitted: float = float("nan")
    token_times: list[float] = field(default_factory=list)  # when each token was computed
    completed: float = float("nan")  # when the slot is free again; static batching answers when its batch is done

    @property
    def queueing(self) -> float:
        return self.admitted - self.request.arrival

    @property
    def ttft(self) -> float:
        """Time to first token. Static batching gets credit for tokens that are computed, though none is sent yet."""
        return self.token_times[0] - self.request.arrival

    @property
    def inter_token(self) -> np.ndarray:
        """Gaps between tokens, one fewer than there are tokens."""
        return np.diff(self.token_times)

    @property
    def latency(self) -> float:
        """End to end."""
        return self.completed - self.request.arrival


@dataclass(frozen=True)
class Step:
    """One pass through the model."""

    start: float
    seconds: float
    prefill_tokens: int  # with padding, as is what follows
    decode_rows: int
    slots: tuple[tuple[int, Phase], ...]  # of each slot: index of its request (-1 if empty), and its phase

    @property
    def live(self) -> int:
        """Slots whose work somebody waits for."""
        return sum(phase in (Phase.PREFILL, Phase.DECODE) for _, phase in self.slots)


@dataclass(frozen=True)
class Simulation:
    """The outcome: `results` in the order in which the requests were given, `steps` in the order of time."""

    policy: Policy
    max_num_seqs: int
    results: list[RequestResult]
    steps: list[Step]

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    @property
    def makespan(self) -> float:
        """Seconds from the first arrival to the last completion."""
        first = min(result.request.arrival for result in self.results)
        return max(result.completed for result in self.results) - first

    @property
    def throughput(self) -> float:
        """Output tokens a second."""
        return sum(result.request.output_tokens for result in self.results) / self.makespan

    @property
    def utilization(self) -> float:
        """Share of slots that do useful work, averaged over the makespan."""
        busy = sum(step.seconds * step.live for step in self.steps)
        return busy / (self.max_num_seqs * self.makespan)

    @property
    def longest_gap(self) -> float:
        """The longest wait between two tokens of a request, 0 if no request has two."""
        return max((float(r.inter_token.max()) for r in self.results if len(r.token_times) > 1), default=0.0)

    def timeline(self) -> tuple[np.ndarray, np.ndarray]:
        """Two integer arrays [slot, step]: index of the request (-1: none), and `Phase`."""
        cells = np.array([step.slots for step in self.steps], dtype=np.int64)  # [step, slot, 2]
        return cells[:, :, 0].T, cells[:, :, 1].T

    def summary(self) -> dict[str, Any]:
        """A row of a table; it names the workload, for without it the other numbers mean nothing."""
        ttft = [result.ttft for result in self.results]
        return {
            "policy": self.policy,
            "slots": self.max_num_seqs,
            "requests": len(self.results),
            "output_tokens": sum(result.request.output_tokens for result in self.results),
            "steps": self.num_steps,
            "seconds": self.makespan,
            "tokens_per_second": self.throughput,
            "utilization": self.utilization,
            "mean_ttft": float(np.mean(ttft)),
            "p99_ttft": float(np.percentile(ttft, 99)),
            "mean_latency": float(np.mean([result.latency for result in self.results])),
            "longest_gap": self.longest_gap,
        }


def step_of_one_second(prefill_tokens: int, decode_rows: int) -> float:
    """With this cost, times are numbers of steps."""
    return 1.0


def affine_cost(base: float, per_prefill_token: float, per_decode_row: float) -> StepCost:
    """Seconds of a step: reading the weights, then each prompt token, then each row decoded (which reads its cache)."""
    for name, seconds in (("base", base), ("per_prefill_token", per_prefill_token), ("per_decode_row", per_decode_row)):
        if seconds < 0:
            raise ValueError(f"{name} must be at least 0 seconds, got {seconds}")
    return lambda prefill_tokens, decode_rows: base + per_prefill_token * prefill_tokens + per_decode_row * decode_rows


@dataclass
class _Running:
    """What a slot holds."""

    index: int
    prompt_left: int
    made: int = 0
    done: bool = False


def simulate(
    requests: Sequence[SimRequest],
    policy: Policy = "in_flight",
    max_num_seqs: int = 16,
    cost: StepCost = step_of_one_second,
    token_budget: int | None = None,
    padding: bool = True,
) -> Simulation:
    """Serve ``requests``, first come first served (of equal arrivals, the first in the list).

    Args:
        requests: in any order.
        policy: see the module's docstring.
        max_num_seqs: number of slots.
        cost: seconds of a step, given its prompt tokens and its rows that decode.
        token_budget: most tokens a step, for "chunked" and only there (512 if None). At least ``max_num_seqs``, so that
            all running requests get their token in every step.
        padding: static batching computes padding too, as Hugging Face's `generate` does: prompts are as long as the
            longest of the batch, and rows that are done are computed until the batch is. False: padding costs nothing.

    Raises:
        ValueError: no requests, an unknown policy, slots, a budget or a cost that is out of range.
    """
    budget = _token_budget(requests, policy, max_num_seqs, token_budget)
    waiting = deque(sorted(range(len(requests)), key=lambda i: requests[i].arrival))
    results = [RequestResult(request) for request in requests]
    slots: list[_Running | None] = [None] * max_num_seqs
    steps: list[Step] = []
    clock = 0.0
    while waiting or any(slots):
        if not any(slots):
            clock = max(clock, requests[waiting[0]].arrival)  # idle until somebody comes
        chunks = _plan(slots, waiting, requests, clock, policy, budget)
        running = [each for each in slots if each is not None]
        for each in running:
            if each.index in chunks and each.prompt_left == requests[each.index].prompt_tokens:
                results[each.index].admitted = clock
        decode_rows = sum(each.prompt_left == 0 and not each.done for each in running)
        prefill_tokens = sum(chunks.values())
        if policy == "static" and padding:
            decode_rows = 0 if chunks else len(running)
            prefill_tokens = len(chunks) * max(chunks.values(), default=0)
        seconds = cost(prefill_tokens, decode_rows)
        if not 0 < seconds < float("inf"):
            raise ValueError(f"cost must return a positive, finite number of seconds, got {seconds}")
        steps.append(Step(clock, seconds, prefill_tokens, decode_rows, tuple(_cell(each, chunks) for each in slots)))
        clock += seconds
        for each in running:
            each.prompt_left -= chunks.get(each.index, 0)
            if each.prompt_left == 0 and not each.done:
                each.made += 1
                each.done = each.made == requests[each.index].output_tokens
                results[each.index].token_times.append(clock)
        if policy != "static" or all(each.done for each in running):
            for number, slot in enumerate(slots):
                if slot is not None and slot.done:
                    results[slot.index].completed = clock
                    slots[number] = None
    return Simulation(policy, max_num_seqs, results, steps)


def _plan(
    slots: list[_Running | None],
    waiting: deque[int],
    requests: Sequence[SimRequest],
    clock: float,
    policy: Policy,
    budget: float,
) -> dict[int, int]:
    """Fill free slots from ``waiting``, and return the prompt tokens of this step by index of request."""
    chunks: dict[int, int] = {}
    left = budget - sum(each is not None and each.prompt_left == 0 and not each.done for each in slots)
    for each in slots:  # a prompt that was cut comes before new ones; there is never more than one
        if each is not None and each.prompt_left:
            chunks[each.index] = int(min(each.prompt_left, left))
            left -= chunks[each.index]
    if policy == "static" and any(slots):
        return chunks
    for number, slot in enumerate(slots):
        if slot is None and left > 0 and waiting and requests[waiting[0]].arrival <= clock:
            index = waiting.popleft()
            prompt = requests[index].prompt_tokens
            slots[number] = _Running(index, prompt)
            chunks[index] = int(min(prompt, left))
            left -= chunks[index]
    return chunks


def _cell(slot: _Running | None, chunks: dict[int, int]) -> tuple[int, Phase]:
    if slot is None:
        return -1, Phase.EMPTY
    return slot.index, Phase.DONE if slot.done else Phase.PREFILL if slot.index in chunks else Phase.DECODE


def _token_budget(requests: Sequence[SimRequest], policy: str, max_num_seqs: int, token_budget: int | None) -> float:
    """The most tokens a step, infinite unless prompts are cut; raises ValueError for what `simulate` cannot take."""
    if not requests:
        raise ValueError("requests must hold at least one request, got none")
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
    if policy != "chunked":
        if token_budget is not None:
            raise ValueError(
                f"token_budget must be None unless policy is 'chunked', got {token_budget} with {policy!r}"
            )
        return float("inf")
    budget = max(512, max_num_seqs) if token_budget is None else token_budget
    if budget < max_num_seqs:
        raise ValueError(f"token_budget must be at least max_num_seqs={max_num_seqs}, got {budget}")
    return budget


def compare(
    requests: Sequence[SimRequest],
    max_num_seqs: int = 16,
    cost: StepCost = step_of_one_second,
    token_budget: int | None = None,
    padding: bool = True,
    policies: Sequence[Policy] = POLICIES,
) -> list[dict[str, Any]]:
    """Rows of a table, one a policy: its `Simulation.summary`, and throughput over that of the first, the baseline."""
    rows: list[dict[str, Any]] = []
    for policy in policies:
        chunk = token_budget if policy == "chunked" else None
        row = simulate(requests, policy, max_num_seqs, cost, chunk, padding).summary()
        baseline = rows[0] if rows else row
        row["baseline"] = policies[0]
        row["speedup"] = row["tokens_per_second"] / baseline["tokens_per_second"]
        rows.append(row)
    return rows


def requests_at_once(output_tokens: Iterable[int], prompt_tokens: int = 1) -> list[SimRequest]:
    """One request for each length, all there from the start."""
    return [SimRequest(0.0, prompt_tokens, length) for length in output_tokens]


def poisson_requests(
    rate: float,
    num_requests: int,
    prompt_tokens: tuple[int, int] = (16, 256),
    output_tokens: tuple[int, int] = (8, 128),
    seed: int = 0,
) -> list[SimRequest]:
    """Poisson arrivals, ``rate`` a second on average; lengths are drawn evenly from (smallest, largest).

    Raises:
        ValueError: a rate or number that is not positive, or a range that is empty.
    """
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate must be a positive, finite number of requests a second, got {rate}")
    if num_requests < 1:
        raise ValueError(f"num_requests must be at least 1, got {num_requests}")
    for name, (low, high) in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        if not 1 <= low <= high:
            raise ValueError(f"{name} must be (smallest, largest) with 1 <= smallest <= largest, got {(low, high)}")
    generator = np.random.default_rng(seed)
    # standard_exponential, then divided: another rate stretches the same arrivals, which a slider shows best
    arrivals = np.cumsum(generator.standard_exponential(num_requests)) / rate
    prompts = generator.integers(*prompt_tokens, size=num_requests, endpoint=True)
    outputs = generator.integers(*output_tokens, size=num_requests, endpoint=True)
    return [SimRequest(float(a), int(p), int(o)) for a, p, o in zip(arrivals, prompts, outputs, strict=True)]


def trace_requests(rows: Iterable[tuple[float, int, int]], speed: float = 1.0) -> list[SimRequest]:
    """Requests from a log of (arrival in seconds, prompt tokens, output tokens), played ``speed`` times as fast.

    The first arrival becomes time 0, so a log may hold Unix times.

    Raises:
        ValueError: ``speed`` is not positive.
    """
    if speed <= 0:
        raise ValueError(f"speed must be positive, got {speed}")
    log = sorted(rows, key=lambda row: row[0])
    return [SimRequest((arrival - log[0][0]) / speed, prompt, output) for arrival, prompt, output in log]
