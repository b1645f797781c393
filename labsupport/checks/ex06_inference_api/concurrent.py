"""Several requests at a time, and /health while the engine computes."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.reading import json_object, judge_serving, judge_threads, short, text_of
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.visit import QUIET, Got, Visit

PATIENCE = 100  # steps until requests that wait must be in the engine


class CheckConcurrent(ApiCheck):
    name = "check_concurrent"
    points = 4
    holds = "/health is answered while the engine computes, and requests that come together are computed together"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        return {"answers": draw_answers(draw, 160, 150, 170), "max_tokens": draw.randint(130, 140)}

    def meet(self, visit: Visit, inputs: Inputs, outcome: dict[str, Any]) -> None:
        engine, (first, *others) = visit.engine, inputs["answers"]

        def ask(prompt: str) -> Got:
            return visit.post(COMPLETIONS, {"prompt": prompt, "max_tokens": inputs["max_tokens"]})

        engine.hold()
        got = [ask(first)]
        visit.wait(lambda: engine.held or got[0].ended)
        outcome["stepped"] = engine.held
        health = visit.get("/health")
        visit.wait(lambda: health.ended, 3 if engine.on_loop else QUIET)
        outcome["health"] = health.plain()
        if health.ended and engine.held:
            got += [ask(prompt) for prompt in others]
            visit.wait(lambda: len(engine.seen) == len(got), 2)  # at once, if step() is not in the way
            for _ in range(PATIENCE):  # a queue or a lock lets them in between two steps
                engine.allow()
                if not visit.wait(lambda: engine.held) or len(engine.seen) == len(got):
                    break
        engine.open()
        visit.finish(*got)
        outcome["largest_batch"] = engine.largest_batch
        outcome["got"] = [each.plain() for each in got]

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        if values["on_loop"]:
            raise Wrong(
                "engine.step() ran on the thread of the server's event loop: until it returns, no other request is "
                "answered, not even /health; step in a thread of its own, asyncio.to_thread, or a def endpoint"
            )
        if not values["health"]["ended"]:
            raise Wrong(
                "GET /health got no answer while engine.step() ran: it waits for the engine, through a lock that is "
                "held during a step or through a blocked event loop, and must not"
            )
        text_of(values["health"], "GET /health while the engine computes")
        judge_threads(values["overlaps"])
        asked = [{"prompt": prompt, "max_tokens": inputs["max_tokens"]} for prompt in inputs["answers"]]
        for body, got in zip(asked, values["got"], strict=False):
            what = f"{len(asked)} requests at a time: POST {COMPLETIONS} with {short(body)}"
            found = _strings(json_object(text_of(got, what), what))
            own, *others = sorted(inputs["answers"], key=lambda prompt: prompt != body["prompt"])
            for prompt in others:
                if _beginning(inputs["answers"][prompt]) in found:
                    raise Wrong(
                        f"{what}: it got the text of another request; step() returns the outputs of all that run"
                    )
            if _beginning(inputs["answers"][own]) not in found:
                raise Wrong(f"{what}: the text must begin with {inputs['answers'][own][:12]!r}; got {found[:80]!r}")
        if values["largest_batch"] < len(asked):
            raise Wrong(
                f"{len(asked)} requests came while the first was computed, and the engine never had more than "
                f"{values['largest_batch']} in a step: one call of step() serves all, so add each request while "
                "others run, and let a waiting request have its turn between two steps"
            )


def _strings(value: Any) -> str:
    """All strings in a JSON value: its structure is for another check to judge."""
    if isinstance(value, dict | list):
        return "\n".join(_strings(each) for each in (value.values() if isinstance(value, dict) else value))
    return value if isinstance(value, str) else ""


def _beginning(answer: str) -> str:
    return answer.strip()[:7]


check_concurrent = CheckConcurrent()
