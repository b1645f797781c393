"""At most max_num_seqs requests in a step."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex05_continuous_batching.drawing import at_once, draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.playing import SchedulerCheck
from labsupport.checks.ex05_continuous_batching.reading import read_steps
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckSlots(SchedulerCheck):
    name = "check_slots"
    points = 2
    holds = "never more than max_num_seqs requests get a token in a step"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        ids = draw_ids(draw, 8)
        cases = [make_case(slots, at_once(ids, [draw.randint(1, 6) for _ in ids])) for slots in (1, 2, 3, 7)]
        return named(*cases)

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            for number, ids in enumerate(read_steps(case, each, values[case]), start=1):
                if len(ids) <= each["slots"]:
                    continue
                text = f"for {case}, step {number} returned {ids}, {len(ids)} requests in {each['slots']}"
                if len(ids) == each["slots"] + 1:
                    raise Wrong(f"{text}: one too many, is that <= where < is meant?")
                raise Wrong(f"{text}: only max_num_seqs run at a time, the others wait")


check_slots = CheckSlots()
