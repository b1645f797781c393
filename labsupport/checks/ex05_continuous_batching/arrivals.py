"""Requests that come while others run, or after a pause."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex05_continuous_batching.drawing import draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.oracles import right_schedule
from labsupport.checks.ex05_continuous_batching.playing import SchedulerCheck
from labsupport.checks.ex05_continuous_batching.reading import read_steps
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckArrivals(SchedulerCheck):
    name = "check_arrivals"
    points = 3
    holds = "requests may come while others run, or after a pause; with nobody to serve a step returns []"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 4)
        ids = draw_ids(draw, 10)
        overtaking = [[1, ids[0], 4], [1, ids[1], 2], [1, ids[2], 3], [1, ids[3], 2], [3, ids[4], 1], [4, ids[5], 2]]
        arrivals = [sorted(draw.choices(range(1, 13), k=10)) for _ in range(2)]
        lengths = [[draw.randint(1, 5) for _ in ids] for _ in range(2)]
        return named(
            make_case(2, [[1, ids[0], 4], [2, ids[1], 3], [4, ids[2], 2]]),
            make_case(2, overtaking),
            *(
                make_case(3, [list(r) for r in zip(a, ids, n, strict=True)])
                for a, n in zip(arrivals, lengths, strict=True)
            ),
            make_case(2, [[3, ids[0], 2], [8, ids[1], 1], [8, ids[2], 2]], extra=3),
            make_case(3, [], extra=2),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = read_steps(case, each, values[case], idle=True)
            for number, (ids, wanted) in enumerate(zip(steps, right_schedule(each), strict=True), start=1):
                if ids == wanted:
                    continue
                text = f"for {case}, step {number} returned {ids}, not {wanted}"
                missing = [request_id for request_id in wanted if request_id not in ids]
                ahead = [request_id for request_id in ids if request_id not in wanted]
                if missing and ahead:
                    raise Wrong(f"{text}: {ahead[0]} overtakes {missing[0]}, which has waited longer")
                if missing:
                    raise Wrong(
                        f"{text}: {missing[0]} has been added and a slot is free; "
                        "requests may be added at any time, also when the scheduler has nothing left to do"
                    )
                raise Wrong(text)


check_arrivals = CheckArrivals()
