"""What the clients got, or `Wrong`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from labsupport.checks.ex06_inference_api.serving import APP
from labsupport.checks.judging import Wrong, returned

NOT_WOKEN = (
    "an asyncio.Queue, Event or Future is not thread-safe, so a thread that feeds it does not wake the loop; "
    "use loop.call_soon_threadsafe(queue.put_nowait, output)"
)


def judge_serving(values: Mapping[str, Any]) -> None:
    if "stuck" in values:
        raise Wrong(f"{APP}(engine) or the app's start (its lifespan) never came to an end")
    returned(values["made"], f"{APP}(engine)")
    if not values["callable"]:
        raise Wrong(f"{APP} must return the FastAPI app; it returned {values['described']}")
    if values["startup"] is not None:
        returned({"raised": values["startup"]}, "the app's start (its lifespan)")


def judge_threads(overlaps: list[str]) -> None:
    for function in overlaps:
        raise Wrong(
            f"engine.{function}() was called while engine.step() ran in another thread: the engine serves one caller "
            "at a time, so guard it with a lock, or hand requests to the thread that steps through a queue"
        )


def text_of(answer: Mapping[str, Any], what: str) -> str:
    """The text of an answer with status 200, or `Wrong`."""
    status, error = answer["status"], answer["error"]
    if error is not None:
        returned({"raised": {**error, "not_attempted": False}}, what)
    if answer["woken"]:
        raise Wrong(f"{what} was answered only when something else had woken the event loop: {NOT_WOKEN}")
    if not answer["ended"]:
        raise Wrong(f"{what} was never answered{' in full' if status else ''}: {answer['why']}")
    if status != 200:
        raise Wrong(f"{what} was answered with status {status}, {short(answer['text'].encode())}; it must be 200")
    return answer["text"]


def json_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise Wrong(f"{what} must be answered with JSON; got {text[:60]!r}") from None
    if not isinstance(value, dict):
        raise Wrong(f"{what} must be answered with a JSON object; got {text[:60]!r}")
    return value


def only_choice(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Wrong(f'{what} must have "choices", a list of one object; got {str(choices)[:60]}')
    if not isinstance(choices[0].get("text"), str):
        raise Wrong(f'{what} must have "choices"[0]["text"], a string; got {str(choices[0])[:80]}')
    return choices[0]


def judge_envelope(value: Mapping[str, Any], what: str) -> str:
    """The id of an answer, or of a piece of one, whose fields around the choices are right."""
    if value.get("object") != "text_completion":
        raise Wrong(f'{what}: "object" must be "text_completion"; got {value.get("object")!r}')
    if not isinstance(value.get("id"), str) or not value["id"]:
        raise Wrong(f'{what}: "id" must be a string that is not empty; got {value.get("id")!r}')
    return value["id"]


def judge_text(text: str, expected: str, prompt: str, what: str) -> None:
    if text == expected:
        return
    cause = ""
    if text.startswith(prompt):
        cause = ": the prompt is not part of the answer"
    elif "\ufffd" in text:
        cause = ": a character may take several tokens, which must not be decoded one by one; use output.text"
    elif text.strip() == expected.strip():
        cause = ": spaces are part of the text"
    elif text and expected.endswith(text) and not expected.isascii():
        cause = ": its beginning is missing; a character may take several tokens, so send what is new of output.text"
    elif text and expected.startswith(text):
        cause = ": the rest is missing"
    elif text.startswith(expected):
        cause = ": is max_tokens passed to SamplingParams?"
    raise Wrong(
        f"{what}: the text must be the engine's, {_around(expected, text)}; got {_around(text, expected)}{cause}"
    )


def judge_reason(reason: Any, expected: str, what: str) -> None:
    if reason != expected:
        raise Wrong(
            f"{what}: finish_reason must be {expected!r}, "
            f"{'max_tokens was reached' if expected == 'length' else 'the model ended its text'}; got {reason!r}"
        )


def short(body: Any) -> str:
    """A request's body in a message."""
    text = body.decode() if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:100]}...{text[-10:]}"


def _around(text: str, other: str) -> str:
    """The part of ``text`` where it begins to differ from ``other``."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - 12) if same > 30 else 0
    return repr(("..." if start else "") + text[start : start + 40] + ("..." if len(text) > start + 40 else ""))
