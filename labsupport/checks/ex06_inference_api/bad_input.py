"""What cannot be served is refused."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.reading import judge_serving, short, text_of
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.visit import Visit


class CheckBadInput(ApiCheck):
    name = "check_bad_input"
    points = 3
    holds = "what cannot be served is refused with a status of 4xx, also for streams, and leaves nothing behind"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        answers = draw_answers(draw, 20)
        (prompt,) = answers
        size = draw.randint(2, 9)
        bodies: list[Any] = [
            {"prompt": prompt, "max_tokens": -size},
            {"prompt": prompt, "max_tokens": 0},
            {"prompt": prompt, "max_tokens": 10**9},
            {"prompt": prompt, "max_tokens": 10**30},
            {"prompt": prompt, "max_tokens": "many"},
            {"prompt": prompt, "max_tokens": size + 0.5},
            {"prompt": prompt, "max_tokens": [size]},
            {"prompt": prompt, "temperature": -draw.randint(1, 99) / 100},
            {"prompt": prompt, "temperature": "hot"},
            {"prompt": ""},
            {"prompt": size},
            {"prompt": None},
            {"max_tokens": 8},
            {"prompt": "long " * 1000, "max_tokens": 8},
            ["prompt", prompt],
            {"prompt": prompt, "max_tokens": -3, "stream": True},
            {"prompt": "", "stream": True},
            {"prompt": "long " * 1000, "max_tokens": 8, "stream": True},
            {"prompt": prompt, "max_tokens": str(size)},
            {"prompt": prompt, "max_tokens": True},
            {"prompt": prompt, "temperature": "0.5"},
            {"prompt": prompt, "temperature": True},
            {"prompt": prompt, "stream": "false"},
        ]
        texts = [f'{{"prompt": "{prompt}", "max_tok', "", "null", f'"{prompt}"']
        texts += [f'{{"prompt": "{prompt}", "temperature": {value}}}' for value in ("NaN", "Infinity", "-Infinity")]
        return {"answers": answers, "bodies": bodies, "texts": texts}

    def meet(self, visit: Visit, inputs: Inputs, outcome: dict[str, Any]) -> None:
        outcome["got"] = []
        for body in _requests(inputs):
            got = visit.post(COMPLETIONS, body)
            ended = visit.finish(got)
            outcome["got"].append(got.plain())
            if not ended:
                return
        visit.wait(lambda: not visit.engine.requests)
        outcome["left"] = len(visit.engine.requests)
        (prompt,) = inputs["answers"]
        good = [visit.post(COMPLETIONS, body) for body in _good(prompt)]
        visit.finish(*good)
        outcome["good"] = [each.plain() for each in good]

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        for body, got in zip(_requests(inputs), values["got"], strict=False):
            what = f"POST {COMPLETIONS} with {short(body)}"
            status = got["status"]
            if status is not None and 400 <= status < 500:
                continue
            if got["woken"]:
                text_of(got, what)
            if status is None:
                raise Wrong(f"{what} was never answered; what cannot be served is refused with a status of 4xx")
            cause = f" ({got['error']['type']}: {got['error']['message']})" if got["error"] else ""
            raise Wrong(f"{what} was answered with status {status}{cause}; {_advice(body, status, bool(got['error']))}")
        if values["left"]:
            raise Wrong(f"requests that were refused left {values['left']} in the engine")
        (prompt,) = inputs["answers"]
        for body, got in zip(_good(prompt), values["good"], strict=True):
            text_of(got, f"POST {COMPLETIONS} with {short(body)}, which is good, after bad ones,")


def _requests(inputs: Inputs) -> list[Any]:
    return [*inputs["bodies"], *(text.encode() for text in inputs["texts"])]


def _good(prompt: str) -> list[Any]:
    """A usual request, and those that can just be served."""
    return [{"prompt": prompt, "max_tokens": 8}, {"prompt": "a"}, {"prompt": prompt, "max_tokens": 1},
            {"prompt": prompt, "temperature": 0}]  # fmt: skip


def _advice(body: Any, status: int, raised: bool) -> str:
    """What usually makes an app answer this bad request with that status."""
    fields = body if isinstance(body, dict) else {}
    if status == 200 and fields.get("stream") is True:
        return (
            "a stream's status is sent before its first piece, so call engine.add_request() before the "
            "StreamingResponse is returned"
        )
    for name in ("max_tokens", "temperature", "stream"):
        value = fields.get(name)
        if status == 200 and value is not None and (isinstance(value, str) or (value is True and name != "stream")):
            kind = "a string" if isinstance(value, str) else "a boolean"
            return (
                f"{json.dumps(value)} is {kind}, and must be refused with a status of 4xx: pydantic converts it unless "
                "the model is strict, and in Python True is an int"
            )
    if isinstance(body, bytes) and status == 500 and raised and re.search(rb": (NaN|-?Infinity)}", body):
        return (
            "it must be a status of 4xx: FastAPI's own answer to an invalid field repeats the value, which JSON cannot "
            "express; write an exception handler for RequestValidationError that does not"
        )
    return (
        "what cannot be served is refused with a status of 4xx: let pydantic check the fields, and turn the engine's "
        "ValueError into such a status"
    )


check_bad_input = CheckBadInput()
