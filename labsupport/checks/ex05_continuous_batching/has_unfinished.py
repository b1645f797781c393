"""When there is something left to do."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex05_continuous_batching.drawing import at_once, draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.playing import SCHEDULER, SchedulerCheck, play
from labsupport.checks.ex05_continuous_batching.reading import Steps, read_steps, unfinished_at
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain


class CheckHasUnfinished(SchedulerCheck):
    name = "check_has_unfinished"
    points = 2
    holds = "has_unfinished is true from the first add() until the last request has its last token, and no longer"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 5)
        ids = draw_ids(draw, 5)
        return named(
            make_case(2, at_once(ids, [draw.randint(1, 4) for _ in ids])),
            make_case(3, at_once(ids[:1], [draw.randint(2, 4)])),
            make_case(1, [[1, ids[0], 2], [2, ids[1], 1], [4, ids[2], 2]]),  # the third comes when the second is done
        )

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: play(answer[SCHEDULER], each, ask=True) for case, each in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = read_steps(case, each, values[case])
            points = iter(values[case]["asked"])
            requests, added = list(each["requests"]), 0
            self._expect(case, next(points), [], [], "nothing has been added yet")
            for number in range(1, len(steps) + 1):
                while added < len(requests) and requests[added][0] == number:
                    added += 1
                    unfinished = unfinished_at({"requests": requests[:added]}, steps, number)
                    self._expect(case, next(points), unfinished, steps[: number - 1], "")
                unfinished = unfinished_at({"requests": requests[:added]}, steps[:number], number + 1)
                last = "the last token has been given" if steps[number - 1] else "no request is left"
                self._expect(case, next(points), unfinished, steps[:number], last)

    def _expect(self, case: str, point: Plain, unfinished: list[int], steps: Steps, otherwise: str) -> None:
        when, outcome = point
        value = returned(outcome, f"{case}, has_unfinished {when}")
        if value == "a method":
            raise Wrong("has_unfinished is a method: write @property above it, it is read without parentheses")
        if value is bool(unfinished):
            return
        text = f"for {case}, has_unfinished is {value} {when}"
        if not unfinished:
            raise Wrong(f"{text}: {otherwise}, a loop over it would call step() once too often")
        seen = {request_id for ids in steps for request_id in ids}
        if not seen & set(unfinished):
            raise Wrong(f"{text}: {unfinished[0]} waits, and a waiting request is unfinished too")
        raise Wrong(f"{text}: {unfinished[0]} lacks tokens, a loop over it would stop too early")


check_has_unfinished = CheckHasUnfinished()
