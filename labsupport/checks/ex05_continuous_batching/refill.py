"""No slot idles while a request waits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex05_continuous_batching.drawing import at_once, draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.playing import SchedulerCheck
from labsupport.checks.ex05_continuous_batching.reading import Steps, read_steps, unfinished_at
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckRefill(SchedulerCheck):
    name = "check_refill"
    points = 4
    holds = "a slot that comes free is taken in the very next step, and no slot idles while a request waits"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        ids = draw_ids(draw, 9)
        long, equal = draw.randint(9, 12), draw.randint(2, 4)
        return named(
            make_case(2, at_once(ids[:4], [long, 2, 3, 2])),
            make_case(3, at_once(ids[:6], [equal] * 6)),
            make_case(3, at_once(ids, [long, *draw.sample(range(1, 9), 8)])),
            make_case(4, at_once(ids[:8], [long, 2, 2, 2, 3, 1, 3, 2])),  # three slots come free at once
            make_case(1, at_once(ids[:3], [2, 1, 3])),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = read_steps(case, each, values[case])
            for number, ids in enumerate(steps, start=1):
                unfinished = unfinished_at(each, steps, number)
                if len(ids) >= min(each["slots"], len(unfinished)):
                    continue
                raise Wrong(f"for {case}, step {number} returned {ids}: {_why_idle(each, steps, number, unfinished)}")


def _why_idle(inputs: Mapping[str, Any], steps: Steps, number: int, unfinished: list[int]) -> str:
    """Why a slot was empty in step ``number``."""
    ids, before = steps[number - 1], steps[: number - 1]
    seen = {request_id for earlier in before for request_id in earlier}
    passed_over = [request_id for request_id in unfinished if request_id in seen and request_id not in ids]
    if not before:
        return f"{min(inputs['slots'], len(unfinished))} requests should have a slot and get a token in the first step"
    if passed_over:
        still = unfinished_at(inputs, steps, number + 1)
        done = [request_id for request_id in ids if request_id not in still]
        if done:
            return (
                f"{passed_over[0]} runs and was passed over when {done[0]} got its last token; removing from a list "
                "while iterating over it skips the next one"
            )
        return f"{passed_over[0]} runs and got no token: every running request gets one in every step"
    waiting = next(request_id for request_id in unfinished if request_id not in seen)
    if _never_mixes(inputs, steps):
        return (
            f"{waiting} waits until the whole batch is done, which is static batching; a request takes a slot as soon "
            "as one is free"
        )
    return (
        f"{waiting} waits although a slot has been free since the step before: fill the slots at the start of each "
        "step with requests that still wait, after those that are done have left"
    )


def _never_mixes(inputs: Mapping[str, Any], steps: Steps) -> bool:
    """Whether no request starts while one that started earlier lacks a token."""
    seen: set[int] = set()
    for number, ids in enumerate(steps, start=1):
        if set(ids) - seen and seen & set(unfinished_at(inputs, steps, number)):
            return False
        seen |= set(ids)
    return True


check_refill = CheckRefill()
