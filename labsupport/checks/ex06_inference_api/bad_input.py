"""What cannot be served is refused."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.asgi import wait_until
from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.reading import judge_serving, short, text_of
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck, served
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.stand_in_engine import StandInEngine


class CheckBadInput(ApiCheck):
    name = "check_bad_input"
    points = 3
    holds = "what cannot be served is refused with a status of 4xx, also for streams, and leaves nothing behind"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        answers = draw_answers(draw, 20)
        (prompt,) = answers
        bodies: list[Any] = [
            {"prompt": prompt, "max_tokens": -draw.randint(2, 9)},
            {"prompt": prompt, "max_tokens": 10**9},
            {"prompt": prompt, "max_tokens": "many"},
            {"prompt": prompt, "temperature": -draw.randint(1, 9)},
            {"prompt": prompt, "temperature": "hot"},
            {"prompt": ""},
            {"prompt": draw.randint(2, 9)},
            {"max_tokens": 8},
            {"prompt": "long " * 1000, "max_tokens": 8},
            ["prompt", prompt],
            {"prompt": prompt, "max_tokens": -3, "stream": True},
            {"prompt": "", "stream": True},
            {"prompt": "long " * 1000, "max_tokens": 8, "stream": True},
        ]
        return {"answers": answers, "bodies": bodies, "broken": f'{{"prompt": "{prompt}", "max_tok'}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"got": [], "good": None}
        with served(answer, engine, outcome) as server:
            if server:
                for body in [*inputs["bodies"], inputs["broken"].encode()]:
                    got = server.post(COMPLETIONS, body)
                    ended = got.wait()
                    outcome["got"].append(got.plain())
                    if not ended:
                        return outcome
                (prompt,) = inputs["answers"]
                wait_until(lambda: not engine.requests, 20)
                outcome["left"] = len(engine.requests)
                good = server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 8})
                good.wait()
                outcome["good"] = good.plain()
        return outcome

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        for body, got in zip([*inputs["bodies"], inputs["broken"].encode()], values["got"], strict=False):
            what = f"POST {COMPLETIONS} with {short(body)}"
            status = got["status"]
            if status is not None and 400 <= status < 500:
                continue
            streamed = isinstance(body, dict) and body.get("stream")
            if status == 200 and streamed:
                raise Wrong(
                    f"{what} was answered with status 200: a stream's status is sent before its first piece, so call "
                    "engine.add_request() before the StreamingResponse is returned"
                )
            if status is None:
                raise Wrong(f"{what} was never answered; what cannot be served is refused with a status of 4xx")
            cause = f" ({got['error']['type']}: {got['error']['message']})" if got["error"] else ""
            raise Wrong(
                f"{what} was answered with status {status}{cause}; what cannot be served is refused with a status of "
                "4xx: let pydantic check the fields, and turn the engine's ValueError into such a status"
            )
        if values["left"]:
            raise Wrong(f"requests that were refused left {values['left']} in the engine")
        text_of(values["good"], f"POST {COMPLETIONS} with a good request, after bad ones,")


check_bad_input = CheckBadInput()
