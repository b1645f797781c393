"""An engine that fails."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.asgi import wait_until
from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.reading import judge_serving, text_of
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck, served
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.stand_in_engine import StandInEngine


class CheckHealth(ApiCheck):
    name = "check_health"
    points = 1
    holds = "/health is 200 while the engine works and 503 once it has failed, and no request waits for it forever"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 6)
        return {"answers": draw_answers(draw, 30), "failure": f"CUDA error at 0x{draw.randrange(2**40):x}"}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {}
        with served(answer, engine, outcome) as server:
            if server:
                (prompt,) = inputs["answers"]
                health = server.get("/health")
                health.wait()
                outcome["idle"] = health.plain()
                engine.hold()
                running = server.post(COMPLETIONS, {"prompt": prompt})
                wait_until(lambda: engine.held or running.ended)
                engine.fail(inputs["failure"])
                engine.open()
                running.wait()
                outcome["running"] = running.plain()
                if running.ended:
                    for _ in range(20):  # the failure may take a moment to be noticed
                        health = server.get("/health")
                        health.wait()
                        if health.status != 200:
                            break
                        wait_until(lambda: False, 1)
                    outcome["failed"] = health.plain()
                    later = server.post(COMPLETIONS, {"prompt": prompt})
                    later.wait()
                    outcome["later"] = later.plain()
        return outcome

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        text_of(values["idle"], "GET /health")
        for name, when in (("running", "that ran when engine.step() raised"), ("later", "after engine.step() raised")):
            got, what = values[name], f"POST {COMPLETIONS} {when}"
            if not got["ended"]:
                raise Wrong(f"{what}, was never answered: catch what step() raises, and answer all requests that wait")
            if got["status"] < 500:
                raise Wrong(f"{what}, was answered with status {got['status']}; it must be 500 or 503")
            if inputs["failure"] in got["text"]:
                raise Wrong(f"{what}: the client was sent the exception's text; that is for the log, not for clients")
        if values["failed"]["status"] != 503:
            raise Wrong(
                f"GET /health after engine.step() raised must be answered with status 503; got "
                f"{values['failed']['status']}: it must look at the engine, not always say the same"
            )


check_health = CheckHealth()
