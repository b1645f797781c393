"""A client that leaves before its stream ends."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

from labsupport.checks.asgi import wait_until
from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.reading import judge_serving, judge_threads, text_of
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck, served
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.stand_in_engine import StandInEngine


class CheckDisconnect(ApiCheck):
    name = "check_disconnect"
    points = 2
    holds = "when the client of a stream leaves, its request is aborted, and the others go on"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 5)
        return {"answers": draw_answers(draw, 600, 500), "steps": draw.randint(2, 4)}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"gone": False}
        automatic = gc.isenabled()
        gc.disable()  # it could run in this thread, and wait for a step that only this thread can allow
        try:
            self._leave(answer, engine, inputs, outcome)
        finally:
            if automatic:
                gc.enable()
        return outcome

    def _leave(self, answer: Answer, engine: StandInEngine, inputs: Inputs, outcome: dict[str, Any]) -> None:
        with served(answer, engine, outcome) as server:
            if server:
                leaves, stays = inputs["answers"]
                engine.hold()
                got = [server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 700, "stream": True})
                       for prompt in (leaves, stays)]  # fmt: skip
                for _ in range(100):
                    if len(engine.seen) == 2 and all(len(each.token_ids) >= inputs["steps"] for each in engine.seen):
                        break
                    engine.allow()
                    wait_until(lambda: engine.held, 1)
                wait_until(lambda: all(each.status for each in got), 20)
                wait_until(lambda: engine.held, 20)
                outcome["early"] = [each.plain() for each in got if each.ended]
                got[0].disconnect()
                wait_until(lambda: bool(engine.overlaps), 3)  # immediate if an abort does not wait
                for number in range(60):
                    if number % 20 == 1:  # a generator that is not async ends when it is collected
                        threading.Thread(target=gc.collect, daemon=True).start()  # and may wait for a step
                    if not engine.holds(leaves):
                        break
                    engine.allow(2)
                    wait_until(lambda: not engine.holds(leaves), 1)
                outcome["gone"] = not engine.holds(leaves)
                engine.open()
                got[1].wait()
                outcome["stayed"] = got[1].plain()
                outcome["reasons"] = {request.prompt: request.finish_reason for request in engine.seen}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        leaves, stays = inputs["answers"]
        for each in values["early"]:
            text_of(each, f"POST {COMPLETIONS} with stream: true")
            raise Wrong("two streams of several hundred tokens: one ended before its client could leave")
        if not values["gone"]:
            raise Wrong(
                "the client of a stream left, and the engine went on with its request for 100 steps: abort it where "
                "the generator ends, in a `finally`, and do not await a lock there (a cancelled coroutine cannot)"
            )
        judge_threads(values["overlaps"])
        what = f"POST {COMPLETIONS} with stream: true, beside a client that left,"
        text_of(values["stayed"], what)
        if values["reasons"].get(stays) not in ("stop", "length"):
            raise Wrong(f"{what} was aborted with the other: abort the request of the client that left, and only that")
        if leaves not in values["reasons"]:
            raise ValueError("the request never reached the engine")


check_disconnect = CheckDisconnect()
