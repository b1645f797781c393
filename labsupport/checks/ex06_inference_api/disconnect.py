"""A client that leaves before its stream ends."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.reading import judge_serving, judge_threads, text_of
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.visit import Visit

STEPS = 60  # until a request must be gone whose client has left
MORE = 12


class CheckDisconnect(ApiCheck):
    name = "check_disconnect"
    points = 2
    holds = "when the client of a stream leaves, its request is aborted, the others go on, and no table only grows"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 5)
        return {"answers": draw_answers(draw, 170, 150, 20), "steps": draw.randint(2, 4)}

    def meet(self, visit: Visit, inputs: Inputs, outcome: dict[str, Any]) -> None:
        engine, (leaves, stays, later) = visit.engine, inputs["answers"]
        engine.hold()
        got = [visit.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 300, "stream": True})
               for prompt in (leaves, stays)]  # fmt: skip
        visit.wait(lambda: engine.held or any(each.ended for each in got))
        for _ in range(100):
            if len(engine.seen) == 2 and all(len(each.token_ids) >= inputs["steps"] for each in engine.seen):
                break
            engine.allow()
            visit.wait(lambda: engine.held or any(each.ended for each in got))
        visit.wait(lambda: all(each.status for each in got))
        outcome["early"] = [each.plain() for each in got if each.ended]
        visit.leave(got[0])
        visit.wait(lambda: got[0].over or bool(engine.overlaps), 5)
        visit.wait(lambda: bool(engine.overlaps), 2)
        for number in range(STEPS):
            if not engine.holds(leaves):
                break
            if number % 20 == 1:
                visit.num_kept(3)  # a generator that is not async ends when it is collected
            engine.allow()
            visit.wait(lambda: engine.held or not engine.holds(leaves), 5)
        outcome["gone"] = not engine.holds(leaves)
        engine.open()
        visit.finish(got[1])
        outcome["stayed"] = got[1].plain()
        outcome["reasons"] = {request.prompt: request.finish_reason for request in engine.seen}
        if got[1].ended:
            self._serve_more(visit, later, outcome)

    def _serve_more(self, visit: Visit, prompt: str, outcome: dict[str, Any]) -> None:
        """Requests that end as they should: what is kept of each of them is kept for ever."""
        body = {"prompt": prompt, "max_tokens": 3}
        got = [visit.post(COMPLETIONS, body | {"stream": number % 2 == 1}) for number in range(MORE)]
        ended = visit.finish(*got) and visit.finish(visit.post(COMPLETIONS, body))
        visit.wait(lambda: all(each.over for each in got))
        outcome["kept"] = visit.num_kept() if ended else 0

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        leaves, stays, _ = inputs["answers"]
        for each in values["early"]:
            text_of(each, f"POST {COMPLETIONS} with stream: true")
            raise Wrong("two streams of more than a hundred tokens: one ended before its client could leave")
        if not values["gone"]:
            raise Wrong(
                f"the client of a stream left, and the engine went on with its request for {STEPS} steps: abort it "
                "where the generator ends, in a `finally`, and do not await a lock there (a cancelled coroutine cannot)"
            )
        judge_threads(values["overlaps"])
        what = f"POST {COMPLETIONS} with stream: true, beside a client that left,"
        text_of(values["stayed"], what)
        if values["reasons"].get(stays) not in ("stop", "length"):
            raise Wrong(f"{what} was aborted with the other: abort the request of the client that left, and only that")
        if leaves not in values["reasons"]:
            raise ValueError("the request never reached the engine")
        if values["kept"] > MORE // 2:
            raise Wrong(
                f"of {MORE} more requests, all answered, the app still holds the ids or outputs of {values['kept']}: "
                "a table of requests must lose its entry when the request is over, else a server runs out of memory"
            )


check_disconnect = CheckDisconnect()
