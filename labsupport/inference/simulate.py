"""Discrete-event simulation of batching: static, in-flight (continuous), and in-flight with chunked prefill.

What a scheduler gains depends on arrivals, on lengths, on the number of slots and on the cost of a step. All four are
arguments here, so that a claim can be simulated before it is made:

    static      a batch starts when the one before is done, and ends with its longest member (FasterTransformer)
    in_flight   a slot that becomes free is taken in the next step (Orca: Yu et al. 2022, OSDI, section 3)
    chunked     as in_flight, but a step takes at most `token_budget` tokens: first those of the requests that decode,
                then prompts, piece by piece (Sarathi-Serve: Agrawal et al. 2024, arXiv 2403.02310, algorithm 3)

Prefill reads a request's prompt and gives its first token; every later step gives each running request one token. So an
answer of n tokens takes n steps, and more only if its prompt is cut. Workloads: arrivals.py; results: timeline.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from labsupport.inference.arrivals import SimRequest
from labsupport.inference.timeline import Phase, RequestResult, Simulation, Step

Policy = Literal["static", "in_flight", "chunked"]
POLICIES: tuple[Policy, ...] = ("static", "in_flight", "chunked")
StepCost: TypeAlias = Callable[[int, int], float]  # (prompt tokens, decoded rows) of a step -> its seconds


def step_of_one_second(prefill_tokens: int, decode_rows: int) -> float:
    """The cost with which times are numbers of steps."""
    return 1.0


def affine_cost(base: float, per_prefill_token: float, per_decode_row: float) -> StepCost:
    """Seconds of a step: reading the weights, then each prompt token, then each row decoded (which reads its cache)."""
    for name, seconds in (("base", base), ("per_prefill_token", per_prefill_token), ("per_decode_row", per_decode_row)):
        if seconds < 0:
            raise ValueError(f"{name} must be at least 0 seconds, got {seconds}")
    return lambda prefill_tokens, decode_rows: base + per_prefill_token * prefill_tokens + per_decode_row * decode_rows


def simulate(
    requests: Sequence[SimRequest],
    policy: Policy = "in_flight",
    max_num_seqs: int = 16,
    cost: StepCost = step_of_one_second,
    token_budget: int | None = None,
    padding: bool = True,
) -> Simulation:
    """Serve ``requests``, first come, first served (of equal arrivals, the first in the list).

    Args:
        requests: in any order.
        policy: see the module's docstring.
        max_num_seqs: number of slots.
        cost: seconds of a step, given its prompt tokens and its decoding rows.
        token_budget: tokens a step, at most; for "chunked" only (None: 512). At least ``max_num_seqs``, so that all
            running requests get their token in every step.
        padding: static batching computes padding too, as Hugging Face's `generate` does: every prompt is as long as the
            longest of the batch, and finished rows are computed until the batch is done. False: padding costs nothing.

    Raises:
        ValueError: no requests, an unknown policy, or a number of slots, a budget or a cost that is out of range.
    """
    budget = _token_budget(requests, policy, max_num_seqs, token_budget)
    waiting = deque(sorted(range(len(requests)), key=lambda i: requests[i].arrival))
    results = [RequestResult(request) for request in requests]
    slots: list[_Running | None] = [None] * max_num_seqs
    steps: list[Step] = []
    clock = 0.0
    while waiting or any(slots):
        if not any(slots):
            clock = max(clock, requests[waiting[0]].arrival)  # idle until the next request arrives
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


def compare(
    requests: Sequence[SimRequest],
    max_num_seqs: int = 16,
    cost: StepCost = step_of_one_second,
    token_budget: int | None = None,
    padding: bool = True,
    policies: Sequence[Policy] = POLICIES,
) -> list[dict[str, Any]]:
    """Rows of a table, one a policy: its `Simulation.summary`, and its speedup over the first policy, the baseline."""
    rows: list[dict[str, Any]] = []
    for policy in policies:
        chunk = token_budget if policy == "chunked" else None
        row = simulate(requests, policy, max_num_seqs, cost, chunk, padding).summary()
        baseline = rows[0] if rows else row
        row["baseline"] = policies[0]
        row["speedup"] = row["tokens_per_second"] / baseline["tokens_per_second"]
        rows.append(row)
    return rows


@dataclass
class _Running:
    """What a slot holds."""

    index: int
    prompt_left: int
    made: int = 0
    done: bool = False


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
    for each in slots:  # a prompt that was cut comes before new ones; there is at most one
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
    """Tokens a step, infinite unless prompts are cut. Raises the ValueErrors of `simulate`."""
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
