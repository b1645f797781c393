"""First come, first served, and no pauses."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex05_continuous_batching.drawing import at_once, draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.oracles import right_schedule
from labsupport.checks.ex05_continuous_batching.playing import SchedulerCheck
from labsupport.checks.ex05_continuous_batching.reading import Steps, read_steps, unfinished_at
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckOrder(SchedulerCheck):
    name = "check_order"
    points = 4
    holds = "first come, first served, without a pause once admitted, and ids come back in order of admission"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        ids, more = draw_ids(draw, 9), draw.randint(0, 3)
        a, b, c, d, e = sorted(ids)[:5]
        return named(
            # the first two to come, the last two, the shortest, the longest, the smallest ids: no two the same pair
            make_case(2, at_once([d, e, a, c, b], [length + more for length in (5, 2, 4, 1, 3)])),
            make_case(3, at_once(ids[:7], [6, 1, 4, 5, 2, 3, 4])),
            make_case(3, at_once(ids, [draw.randint(1, 6) for _ in ids])),
            make_case(1, at_once(ids[:4], draw.sample(range(1, 6), 4))),
            make_case(9, at_once(ids, draw.sample(range(1, 10), 9))),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = read_steps(case, each, values[case])
            _judge_order(case, each, steps)
            _judge_schedule(case, each, steps)


def _judge_order(case: str, inputs: Mapping[str, Any], steps: Steps) -> None:
    """Who starts when, who pauses, and in which order the ids are in each list."""
    order = [request_id for _, request_id, _ in inputs["requests"]]
    start: dict[int, int] = {}
    for number, ids in enumerate(steps, start=1):
        running = [i for i in order if i in start and i in unfinished_at(inputs, steps, number)]
        for request_id in running:
            if request_id not in ids:
                raise Wrong(
                    f"for {case}, step {number} returned {ids}: {request_id} started in step {start[request_id]} and "
                    "lacks tokens; once admitted, a request keeps its slot and gets a token in every step"
                )
        waiting = [i for i in unfinished_at(inputs, steps, number) if i not in start]
        new = [request_id for request_id in ids if request_id not in start]
        first = waiting[: len(new)]
        if set(new) != set(first):
            ahead = next(request_id for request_id in new if request_id not in first)
            behind = next(request_id for request_id in first if request_id not in new)
            text = f"for {case}, step {number} admits {ahead} while {behind}, added before it, still waits"
            if set(new) == set(waiting[-len(new) :]):
                raise Wrong(f"{text}: that is last come, first served")
            lengths = {i: num_tokens for _, i, num_tokens in inputs["requests"]}
            rules = {
                "shortest first": lengths,
                "longest first": {i: -num_tokens for i, num_tokens in lengths.items()},
                "smallest id first": {i: i for i in lengths},
            }
            for rule, rank in rules.items():
                if sorted(rank[i] for i in new) == sorted(rank[i] for i in waiting)[: len(new)]:
                    raise Wrong(f"{text}: that is {rule}, under which a request may wait forever")
            raise Wrong(f"{text}: first come, first served")
        start |= dict.fromkeys(new, number)
    for number, ids in enumerate(steps, start=1):
        wanted = sorted(ids, key=order.index)
        if ids == wanted:
            continue
        text = f"for {case}, step {number} returned {ids}; in order of admission that is {wanted}"
        if ids == sorted(ids) and all(each == sorted(each) for each in steps):
            raise Wrong(f"{text}: ids are names, sorting by them does not tell who came first")
        if all(each == sorted(each, key=order.index, reverse=True) for each in steps):
            raise Wrong(f"{text}: yours is the reverse order")
        raise Wrong(f"{text}: the first to come is the first in the list, whichever slot it has")


def _judge_schedule(case: str, inputs: Mapping[str, Any], steps: Steps) -> None:
    """Every list must be the right one: catches what `_judge_order` cannot name, and what follows from other steps."""
    for number, (ids, wanted) in enumerate(zip(steps, right_schedule(inputs), strict=False), start=1):
        if ids != wanted:
            raise Wrong(f"for {case}, step {number} returned {ids}, not {wanted}")


check_order = CheckOrder()
