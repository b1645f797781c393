"""A completion: text, finish_reason and usage."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.oracles import expected_answer
from labsupport.checks.ex06_inference_api.reading import (
    json_object,
    judge_envelope,
    judge_reason,
    judge_serving,
    judge_text,
    only_choice,
    short,
    text_of,
)
from labsupport.checks.ex06_inference_api.serving import COMPLETIONS, ApiCheck
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.visit import Visit

RECENT = 1_600_000_000  # 2020


class CheckCompletion(ApiCheck):
    name = "check_completion"
    points = 4
    holds = "a completion has the engine's text, its finish_reason, and usage counted in tokens"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        answers = draw_answers(draw, 20, 40, 30, 25)
        ends, cut, default, greedy = answers
        bodies = [
            {"prompt": ends, "max_tokens": draw.randint(60, 90), "temperature": 0.5},
            {"prompt": cut, "max_tokens": draw.randint(21, 35)},
            {"prompt": default},
            {
                "prompt": greedy,
                "max_tokens": 100,
                "temperature": 0.0,
                "stream": False,
                "model": "tiny",
                "user": "ada",
                "logit_bias": {},
            },
        ]
        return {"answers": answers, "bodies": bodies}

    def meet(self, visit: Visit, inputs: Inputs, outcome: dict[str, Any]) -> None:
        outcome["got"] = []
        for body in inputs["bodies"]:
            got = visit.post(COMPLETIONS, body)
            ended = visit.finish(got)
            outcome["got"].append(got.plain())
            if not ended:
                break
        outcome["asked"] = [[each.prompt, each.max_tokens, each.temperature] for each in visit.engine.seen]

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        ids = []
        for body, got in zip(inputs["bodies"], values["got"], strict=False):
            what = f"POST {COMPLETIONS} with {short(body)}"
            value = json_object(text_of(got, what), what)
            kind = got["headers"].get("content-type", "none")
            if not kind.startswith("application/json"):
                raise Wrong(f"{what}: the content type must be application/json; got {kind}")
            choice = only_choice(value, what)
            self._judge_asked(body, values["asked"], what)
            text, reason, tokens = expected_answer(inputs["answers"][body["prompt"]], body.get("max_tokens", 16))
            judge_text(choice["text"], text, body["prompt"], what)
            judge_reason(choice.get("finish_reason"), reason, what)
            self._judge_usage(value.get("usage"), len(body["prompt"].encode()), tokens, what)
            ids.append(judge_envelope(value, what))
            if type(value.get("created", RECENT)) is not int or not RECENT <= value.get("created", RECENT) < 4 * RECENT:
                raise Wrong(f'{what}: "created" must be the time in whole seconds since 1970; got {value["created"]!r}')
            if type(choice.get("index")) is not int or choice["index"] != 0:
                raise Wrong(f'{what} must have "choices"[0]["index"], which is 0; got {choice.get("index")!r}')
        if len(set(ids)) < len(ids):
            raise Wrong(f'"id" must be a string, a different one for each request; got {ids}')
        if len(values["got"]) != len(inputs["bodies"]):
            raise ValueError("answers are missing")

    def _judge_asked(self, body: Mapping[str, Any], asked: list[Any], what: str) -> None:
        """The engine got what the client asked for."""
        for prompt, max_tokens, temperature in asked:
            if prompt != body["prompt"]:
                continue
            for name, value, default in (("max_tokens", max_tokens, 16), ("temperature", temperature, 1.0)):
                wanted = body.get(name, default)
                if value != wanted:
                    why = "" if name in body else ", the default"
                    raise Wrong(f"{what}: the engine's SamplingParams must have {name} {wanted}{why}; they had {value}")
            return
        prompts = ", ".join(repr(prompt) for prompt, _, _ in asked) or "nothing"
        raise Wrong(
            f"{what}: the engine must be asked to continue this very prompt; it was asked to continue {prompts[:100]}"
        )

    def _judge_usage(self, usage: Any, prompt_tokens: int, completion_tokens: int, what: str) -> None:
        wanted = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
                  "total_tokens": prompt_tokens + completion_tokens}  # fmt: skip
        if not isinstance(usage, dict):
            raise Wrong(f'{what}: "usage" must be an object with {", ".join(wanted)}; got {str(usage)[:60]}')
        for name, value in wanted.items():
            if usage.get(name) != value:
                raise Wrong(
                    f"{what}: usage's {name} must be {value}; got {usage.get(name)}: count the tokens of "
                    "output.prompt_token_ids and output.token_ids, the one that ended the text included, not words"
                )


check_completion = CheckCompletion()
