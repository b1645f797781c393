"""A stream: each new piece of text is an event, sent when it is there."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
from collections.abc import Mapping
from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.oracles import expected_answer
from labsupport.checks.ex06_inference_api.reading import (
    NOT_WOKEN,
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
from labsupport.checks.visit import Got, Visit

BLOCKED_LAG = 8  # steps until a piece is sent if each step gives the event loop only one turn


class CheckStream(ApiCheck):
    name = "check_stream"
    points = 4
    first_tokens = 7
    holds = "with stream: true each new piece of text is sent as an event when it is there, and [DONE] is the last"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        ends, cut = answers = draw_answers(draw, 15, draw.randint(30, 40))
        bodies = [{"prompt": ends, "max_tokens": 16, "stream": True}, {"prompt": cut, "stream": True}]
        return {"answers": answers, "bodies": bodies}

    def meet(self, visit: Visit, inputs: Inputs, outcome: dict[str, Any]) -> None:
        outcome |= {"got": [], "late": None}
        first, second = inputs["bodies"]
        visit.engine.hold()
        got = visit.post(COMPLETIONS, first)
        outcome["late"] = self._step_by_step(visit, got, first["prompt"])
        visit.engine.open()
        ended = visit.finish(got)
        outcome["got"].append(got.plain())
        if ended:
            got = visit.post(COMPLETIONS, second)
            visit.finish(got)
            outcome["got"].append(got.plain())

    def _step_by_step(self, visit: Visit, got: Got, prompt: str) -> Plain:
        """[step, what the client had then, whether waking the event loop helped] of the first step whose text was not
        sent before the next step; or None."""
        engine = visit.engine
        visit.wait(lambda: got.ended or engine.held)
        request, texts = engine.request(prompt), [""]
        while request and request.finish_reason is None and not got.ended:
            engine.allow()
            if not visit.wait(lambda: got.ended or engine.num_steps >= len(texts)):
                break
            texts.append(request.stream.text)
            due = len(texts[-1])
            if engine.on_loop:  # a blocked loop is for check_concurrent to report
                visit.wait(lambda: engine.held or request.finish_reason is not None)
                due = len(texts[max(0, len(texts) - BLOCKED_LAG)])

            def is_there(due: int = due) -> bool:
                return got.ended or len(_streamed(got.text)) >= due

            if request.finish_reason is None and not visit.wait(is_there):
                had = _streamed(got.text)
                return [engine.num_steps, had, visit.wake(is_there)]
        return None

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        ids: list[str] = []
        for number, (body, got) in enumerate(zip(inputs["bodies"], values["got"], strict=False)):
            what = f"POST {COMPLETIONS} with {short(body)}"
            text = text_of(got | {"woken": False}, what)
            kind = got["headers"].get("content-type", "none")
            if not kind.startswith("text/event-stream"):
                raise Wrong(f"{what}: the content type must be text/event-stream; got {kind}")
            ids += self._judge_events(text, body, inputs["answers"][body["prompt"]], what)
            if number == 0 and values["late"] is not None:
                step, had, woken = values["late"]
                raise Wrong(
                    f"{what}: after step {step} of the engine the client had {had[-40:]!r}, and nothing more came "
                    + (f"until something else woke the event loop: {NOT_WOKEN}" if woken else
                       "before the next step: yield each output's new text as soon as step() has returned it")
                )  # fmt: skip
        if len(set(ids)) < len(ids):
            raise Wrong(f'"id" must be different for each stream; got {ids}')
        if len(values["got"]) != len(inputs["bodies"]):
            raise ValueError("answers are missing")

    def _judge_events(self, text: str, body: Mapping[str, Any], answer: str, what: str) -> set[str]:
        """The ids that its events have: one, or `Wrong`."""
        events, rest = _events(text)
        if rest.strip() or not events:
            raise Wrong(
                f'{what}: an event is "data: ", the JSON and an empty line, so it ends in two newlines; got '
                f"{(rest or text)[:60]!r}"
            )
        if events[-1].strip() != "[DONE]":
            raise Wrong(f"{what}: the last event must be data: [DONE]; got {events[-1][:60]!r}")
        pieces, reasons, ids = [], [], set()
        for data in events[:-1]:
            if data.strip() == "[DONE]":
                raise Wrong(
                    f"{what}: data: [DONE] must come once, as the last event; {len(events) - 1} came, one earlier"
                )
            value = json_object(data, f"{what}: an event's data")
            if "error" in value:
                raise Wrong(f"{what}: an event reports an error, {data[:80]}")
            if value.get("choices") == [] and value.get("usage"):
                continue  # as with OpenAI's stream_options
            choice = only_choice(value, f"{what}: an event")
            ids.add(judge_envelope(value, f"{what}: an event"))
            pieces.append(choice["text"])
            reasons.append(choice.get("finish_reason"))
        expected, reason, _ = expected_answer(answer, body.get("max_tokens", 16))
        cumulative = len(pieces) > 2 and all(b.startswith(a) for a, b in itertools.pairwise(pieces))
        if cumulative and pieces[-1] == expected and "".join(pieces) != expected:
            raise Wrong(
                f"{what}: each event holds all the text so far; "
                "it must hold only the new piece, since clients concatenate the pieces"
            )
        judge_text("".join(pieces), expected, body["prompt"], f"{what}, the pieces joined")
        judge_reason(reasons[-1] if reasons else None, reason, f"{what}, last piece")
        if any(each is not None for each in reasons[:-1]):
            raise Wrong(f"{what}: finish_reason must be null in all pieces but the last; got {reasons[:3]}")
        if len(ids) > 1:
            raise Wrong(f"{what}: all events of a stream have the same id; got {sorted(ids)[:3]}")
        return ids


def _events(text: str) -> tuple[list[str], str]:
    """The data of each complete server-sent event, and what comes after the last of them."""
    *blocks, rest = re.split(r"\r\n\r\n|\n\n|\r\r", text)
    found = []
    for block in blocks:
        lines = [line[5:].removeprefix(" ") for line in block.splitlines() if line.startswith("data:")]
        if lines:
            found.append("\n".join(lines))
    return found, rest


def _streamed(text: str) -> str:
    """The text that a client has by now: what cannot be parsed adds nothing."""
    pieces = []
    for data in _events(text)[0]:
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
            pieces.append(str(json.loads(data)["choices"][0]["text"]))
    return "".join(pieces)


check_stream = CheckStream()
