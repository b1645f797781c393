"""An engine that fails."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.reading import judge_serving, text_of
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.visit import Got, Visit


class CheckHealth(ApiCheck):
    name = "check_health"
    points = 1
    holds = (
        "/health is 200 while the engine works and 503 once it has failed, and no client waits or is told it is done"
    )

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 6)
        return {"answers": draw_answers(draw, 30, 35), "failure": f"CUDA error at 0x{draw.randrange(2**40):x}"}

    def meet(self, visit: Visit, inputs: Inputs, outcome: dict[str, Any]) -> None:
        engine, (prompt, other) = visit.engine, inputs["answers"]
        outcome["idle"] = self._ask(visit, visit.get("/health"))
        engine.hold()
        got = [visit.post(COMPLETIONS, {"prompt": prompt})]
        visit.wait(lambda: engine.held or got[0].ended)
        got.append(visit.post(COMPLETIONS, {"prompt": other, "stream": True}))
        for _ in range(8):  # until both are being computed
            engine.allow()
            visit.wait(lambda: engine.held or any(each.ended for each in got))
            if len(engine.requests) == 2 and all(each.token_ids for each in engine.requests.values()):
                break
        visit.wait(lambda: bool(got[1].status), 5)
        engine.fail(inputs["failure"])
        engine.open()
        visit.finish(*got)
        outcome["running"], outcome["streamed"] = (each.plain() for each in got)
        for _ in range(3):  # the failure may take a moment to be noticed
            outcome["failed"] = self._ask(visit, visit.get("/health"))
            if outcome["failed"]["status"] != 200:
                break
            visit.wait(lambda: False, 2)
        if got[0].ended:
            outcome["later"] = self._ask(visit, visit.post(COMPLETIONS, {"prompt": prompt}))
            outcome["later stream"] = self._ask(visit, visit.post(COMPLETIONS, {"prompt": prompt, "stream": True}))

    def _ask(self, visit: Visit, got: Got) -> Plain:
        visit.finish(got)
        return got.plain()

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        text_of(values["idle"], "GET /health")
        for name, when in (("running", "that ran when engine.step() raised"), ("later", "after engine.step() raised"),
                           ("later stream", "with stream: true, after engine.step() raised")):  # fmt: skip
            got, what = values[name], f"POST {COMPLETIONS} {when}"
            if not got["ended"]:
                raise Wrong(f"{what}, was never answered: catch what step() raises, and answer all requests that wait")
            if got["status"] not in (500, 503):
                raise Wrong(f"{what}, was answered with status {got['status']}; it must be 500 or 503")
            self._judge_secret(got, inputs["failure"], what)
        if values["failed"]["status"] != 503:
            raise Wrong(
                f"GET /health after engine.step() raised must be answered with status 503; got "
                f"{values['failed']['status']}: it must look at the engine, not always say the same"
            )
        got, what = values["streamed"], f"POST {COMPLETIONS} with stream: true that ran when engine.step() raised"
        if not got["ended"]:
            raise Wrong(f"{what}: the stream was never ended; the client waits for it")
        self._judge_secret(got, inputs["failure"], what)
        if re.search(r"(?m)^data: ?\[DONE\]", got["text"]):
            raise Wrong(
                f"{what}: the stream ended in data: [DONE], which says that the answer is complete; end it without, "
                "after an event with an error if you like"
            )

    def _judge_secret(self, got: Mapping[str, Any], failure: str, what: str) -> None:
        if failure in got["text"]:
            raise Wrong(f"{what}: the client was sent the exception's text; that is for the log, not for clients")


check_health = CheckHealth()
