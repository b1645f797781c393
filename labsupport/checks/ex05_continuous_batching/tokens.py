"""Every request gets its tokens, and no more."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex05_continuous_batching.drawing import at_once, draw_ids, make_case, named
from labsupport.checks.ex05_continuous_batching.playing import SchedulerCheck
from labsupport.checks.ex05_continuous_batching.reading import read_steps
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckTokens(SchedulerCheck):
    name = "check_tokens"
    points = 3
    holds = "every request gets exactly its num_tokens tokens, at most one a step, and nobody else gets any"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        ids = draw_ids(draw, 6)
        return named(
            make_case(1, at_once(ids[:1], [draw.randint(3, 6)])),
            make_case(3, at_once(ids[:3], draw.sample(range(2, 8), 3))),
            make_case(4, at_once(ids[:4], [draw.randint(2, 4)] * 4)),
            make_case(2, at_once(ids, draw.sample(range(1, 7), 6))),
            make_case(2, at_once(ids[:5], [1] * 5)),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = read_steps(case, each, values[case])
            for number, ids in enumerate(steps, start=1):
                for request_id in ids:
                    if ids.count(request_id) > 1:
                        raise Wrong(
                            f"for {case}, step {number} returned {ids}: a request gets one token a step, {request_id} "
                            f"got {ids.count(request_id)}"
                        )
            counts = {i: [sum(ids.count(i) for ids in steps), n] for _, i, n in each["requests"]}
            off = {count - n for count, n in counts.values()}
            for request_id, (count, num_tokens) in counts.items():
                if count == num_tokens:
                    continue
                text = f"for {case}, request {request_id} got {count} of {num_tokens} tokens"
                if off == {1}:
                    raise Wrong(f"{text}, and all others got one too many: the token of the current step counts too")
                if off == {-1}:
                    raise Wrong(
                        f"{text}, and all others got one too few: a request gets its first token in the step that "
                        "admits it, and leaves after its last"
                    )
                if count > num_tokens:
                    raise Wrong(f"{text}: it must leave with its last token")
                if count == 0:
                    raise Wrong(f"{text} in {len(steps)} steps: it was lost, or is never admitted")
                raise Wrong(f"{text} in {len(steps)} steps: it left too early, or it waits forever")


check_tokens = CheckTokens()
