"""Schedulers share nothing with each other, nor with the lists they returned.

Each scheduler is compared with one of the same requests that nothing disturbs, not with the right schedule: a mistake
in the order costs its points elsewhere.
"""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex05_continuous_batching.drawing import at_once, draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.playing import SCHEDULER, SchedulerCheck, play
from labsupport.checks.ex05_continuous_batching.reading import Steps, read_steps, unfinished_at
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain, call

OTHERS = (
    "other schedulers exist, with requests of their own; what a scheduler holds must be created in __init__ and set on "
    "self, not on the class, in a global or in a default argument"
)


class CheckState(SchedulerCheck):
    name = "check_state"
    points = 2
    holds = "schedulers share nothing with each other, nor with the lists they returned"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 6)
        ids = draw_ids(draw, 5)
        cases = [
            make_case(2, at_once(ids, [3, *draw.sample(range(1, 6), 4)])),
            make_case(3, at_once(ids, [4, 1, 2, 3, 2])),
        ]
        return named(*cases)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        make = answer[SCHEDULER]
        alone = {case: play(make, each) for case, each in inputs.items()}
        cleared = {case: play(make, each, clear=True) for case, each in inputs.items()}
        ids = [request_id for _, request_id, _ in next(iter(inputs.values()))["requests"]]
        others: list[Any] = []

        def other(slots: int, steps: int) -> Any:
            """A scheduler with unfinished requests of the same ids, that was stopped after so many steps."""
            scheduler = make(slots)
            others.append(scheduler)
            for request_id in ids:
                scheduler.add(request_id, 9)
            for _ in range(steps):
                scheduler.step()
            return scheduler

        def disturbed(slots: int) -> Any:
            """A scheduler made between others, which have other slots. The last one leaves requests that run and others
            that wait: what each scheduler makes anew on the class is then the last one's, and not empty."""
            other(slots + 5, steps=1)
            scheduler = make(slots)
            other(slots + 9, steps=0)
            other(4, steps=1)
            return scheduler

        def fresh() -> Any:
            other(2, steps=1)
            return make(2).step()

        together = {case: play(disturbed, each) for case, each in inputs.items()}
        first, _ = call(fresh)
        for scheduler in others * 30:  # whatever they share is left empty, so that it cannot affect the next check
            call(lambda scheduler=scheduler: scheduler.step())
        return {"alone": alone, "cleared": cleared, "together": together, "fresh": first}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        alone = {case: read_steps(case, each, values["alone"][case]) for case, each in inputs.items()}
        first = values["fresh"].get("returned")
        if isinstance(first, list) and first:
            raise Wrong(f"a fresh scheduler is not empty, its first step returned {first}: {OTHERS}")
        for case, each in inputs.items():
            steps, outcome = alone[case], values["alone"][case]
            if unfinished_at(each, steps, len(steps) + 1):
                raise Wrong(f"for {case}, not every request gets its tokens: first let check_tokens pass")
            for number, (step, later) in enumerate(zip(outcome["steps"], outcome["later"], strict=False), start=1):
                if later != step.get("returned"):
                    raise Wrong(
                        f"for {case}, step {number} returned {step.get('returned')}, but that list became {later} with "
                        "later steps: return a new list each time"
                    )
            cause = "the caller emptied the lists it got, which emptied the scheduler too; return a new list each time"
            _same(case, read_steps(case, each, values["cleared"][case]), steps, cause)
            _same(case, read_steps(case, each, values["together"][case]), steps, OTHERS)


def _same(case: str, disturbed: Steps, alone: Steps, cause: str) -> None:
    for number, (ids, wanted) in enumerate(zip(disturbed, alone, strict=False), start=1):
        if ids != wanted:
            raise Wrong(f"for {case}, step {number} returned {ids}, not {wanted} as before: {cause}")


check_state = CheckState()
