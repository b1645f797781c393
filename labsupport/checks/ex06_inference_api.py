"""Exercise 6: an HTTP API in front of an engine.

The checks are clients: they speak HTTP to the student's app, which runs on a server without a network (`asgi`), before
an engine whose answers are known and whose steps wait until they are allowed (`stand_in_engine`). So whether an app
blocks, streams and batches is seen from the order of events, not from the clock. Any app that keeps the contract
passes: coroutines or functions, a thread that steps or a task, started at once or when it is needed.

What `run` returns is what the clients got, and what the engine was asked.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from labsupport.checks import Check, Exercise, Wrong
from labsupport.checks.asgi import Server, wait_until
from labsupport.checks.judging import returned
from labsupport.checks.plain import Plain, call, describe
from labsupport.checks.stand_in_engine import StandInEngine

APP = "create_app"
COMPLETIONS = "/v1/completions"
BLOCKED_LAG = 8  # steps until a piece is sent where each step gives the event loop but one turn
WORDS = ("cache", "block", "token", "prompt", "batch", "step", "engine", "layer", "café", "naïve", "señor", "张量")

ContractAnswer = Mapping[str, Callable[..., Any]]
Inputs = Mapping[str, Any]


# Drawing --------------------------------------------------------------------------------------------------------------


def _answers(draw: random.Random, *sizes: int) -> dict[str, str]:
    """Different prompts, each with a continuation of so many tokens, at least 10. No two begin with the same word."""
    prompts = draw.sample(["def add(a, b):", "The with statement", "import ", "量化 is", "class Engine:", "Once upon"],
                          len(sizes))  # fmt: skip
    firsts = draw.sample(["量化", "推理", "🙂", "Größe"], len(sizes))  # characters of several bytes
    found = {}
    for prompt, first, size in zip(prompts, firsts, sizes, strict=True):
        text = f" {first}"
        while len(text.encode()) < size:
            text += f" {draw.choice(WORDS)}"
        text = text.encode()[:size].decode(errors="ignore")
        found[f"{prompt} {draw.randint(10, 99)}"] = text + "e" * (size - len(text.encode()))
    return found


def _expected(answer: str, max_tokens: int) -> tuple[str, str, int]:
    """Text, finish_reason and completion_tokens: a token is a byte, and one more ends the answer."""
    size = len(answer.encode())
    if max_tokens > size:
        return answer, "stop", size + 1
    return answer.encode()[:max_tokens].decode(errors="ignore"), "length", max_tokens


def _short(body: Any) -> str:
    """A request's body in a message."""
    text = body.decode() if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:100]}...{text[-10:]}"


# Serving --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _served(answer: ContractAnswer, engine: StandInEngine, outcome: dict[str, Plain]) -> Iterator[Server | None]:
    """The student's app in front of ``engine``, or None if there is none; ``outcome`` then says why."""
    made: list[Any] = []
    maker = threading.Thread(target=lambda: made.extend(call(answer[APP], engine)))  # where no event loop runs
    maker.start()
    maker.join()
    outcome["made"], app = made
    outcome["callable"] = callable(app)
    if not callable(app):
        yield None
        return
    try:
        with Server(app) as server:
            try:
                outcome["startup"] = server.startup_error
                yield server if server.startup_error is None else None
            finally:
                engine.open()
                outcome["overlaps"] = sorted(set(engine.overlaps))
                outcome["blocked"] = server.thread.ident in engine.threads
    finally:
        engine.close()


def _judge_serving(values: Mapping[str, Any]) -> None:
    app = returned(values["made"], f"{APP}(engine)")
    if not values["callable"]:
        raise Wrong(f"{APP} must return the FastAPI app; it returned {describe(app)}")
    if values["startup"] is not None:
        returned({"raised": values["startup"]}, "the app's start (its lifespan)")


def _judge_threads(overlaps: list[str]) -> None:
    for function in overlaps:
        raise Wrong(
            f"engine.{function}() was called while engine.step() ran in another thread: the engine is for one caller "
            "at a time, so guard it with a lock, or hand requests to the thread that steps through a queue"
        )


def _ok(answer: Mapping[str, Any], what: str) -> str:
    """The text of an answer with status 200, or `Wrong`."""
    status, error = answer["status"], answer["error"]
    if error is not None:
        returned({"raised": {**error, "not_attempted": False}}, what)
    if not answer["ended"]:
        raise Wrong(
            f"{what} was never answered{' in full' if status else ''}: does something call engine.step() as long as "
            "engine.has_unfinished, and hand each output to the request it belongs to?"
        )
    if status != 200:
        raise Wrong(f"{what} was answered with status {status}, {_short(answer['text'].encode())}; it must be 200")
    return answer["text"]


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise Wrong(f"{what} must be answered with JSON; got {text[:60]!r}") from None
    if not isinstance(value, dict):
        raise Wrong(f"{what} must be answered with a JSON object; got {text[:60]!r}")
    return value


def _choice(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Wrong(f'{what} must have "choices", a list of one object; got {str(choices)[:60]}')
    if not isinstance(choices[0].get("text"), str):
        raise Wrong(f'{what} must have "choices"[0]["text"], a string; got {str(choices[0])[:80]}')
    return choices[0]


def _judge_text(text: str, expected: str, prompt: str, what: str) -> None:
    if text == expected:
        return
    cause = ""
    if text.startswith(prompt):
        cause = ": the prompt is no part of the answer"
    elif "\ufffd" in text:
        cause = ": a character may be several tokens, so tokens decoded one by one give halves; take output.text"
    elif text.strip() == expected.strip():
        cause = ": spaces are part of the text"
    elif text and expected.startswith(text):
        cause = ": the rest is missing"
    elif text.startswith(expected):
        cause = ": is max_tokens handed to SamplingParams?"
    raise Wrong(
        f"{what}: the text must be the engine's, {_around(expected, text)}; got {_around(text, expected)}{cause}"
    )


def _around(text: str, other: str) -> str:
    """``text`` where it begins to differ from ``other``."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - 12) if same > 30 else 0
    return repr(("..." if start else "") + text[start : start + 40] + ("..." if len(text) > start + 40 else ""))


def _judge_reason(reason: Any, expected: str, what: str) -> None:
    if reason != expected:
        raise Wrong(
            f"{what}: finish_reason must be {expected!r}, "
            f"{'the tokens were used up' if expected == 'length' else 'the model ended its text'}; got {reason!r}"
        )


def _strings(value: Any) -> str:
    """All strings in a JSON value, so that one check need not care for what another one looks at."""
    if isinstance(value, dict | list):
        return "\n".join(_strings(each) for each in (value.values() if isinstance(value, dict) else value))
    return value if isinstance(value, str) else ""


def _beginning(answer: str) -> str:
    return answer.strip()[:7]


class ApiCheck(Check):
    needs = (APP,)


# Completions ----------------------------------------------------------------------------------------------------------


class CheckCompletion(ApiCheck):
    name = "check_completion"
    points = 4
    holds = "a completion has the engine's text, its finish_reason, and usage counted in tokens"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        answers = _answers(draw, 20, 40, 30, 25)
        ends, cut, default, greedy = answers
        bodies = [
            {"prompt": ends, "max_tokens": draw.randint(60, 90), "temperature": 0.5},
            {"prompt": cut, "max_tokens": draw.randint(21, 35)},
            {"prompt": default},
            {"prompt": greedy, "max_tokens": 100, "temperature": 0.0, "stream": False, "model": "tiny"},
        ]
        return {"answers": answers, "bodies": bodies}

    def run(self, answer: ContractAnswer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"got": [], "asked": []}
        with _served(answer, engine, outcome) as server:
            for body in inputs["bodies"] if server else ():
                got = server.post(COMPLETIONS, body)  # type: ignore[union-attr]
                got.wait()
                outcome["got"].append(got.plain())
                if not got.ended:
                    break
        outcome["asked"] = [[r.prompt, r.params.max_tokens, float(r.params.temperature)] for r in engine.seen]
        return outcome

    def judge(self, inputs: Inputs, values: Plain) -> None:
        _judge_serving(values)
        ids = []
        for body, got in zip(inputs["bodies"], values["got"], strict=False):
            what = f"POST {COMPLETIONS} with {_short(body)}"
            value = _object(_ok(got, what), what)
            choice = _choice(value, what)
            self._judge_asked(body, values["asked"], what)
            text, reason, tokens = _expected(inputs["answers"][body["prompt"]], body.get("max_tokens", 16))
            _judge_text(choice["text"], text, body["prompt"], what)
            _judge_reason(choice.get("finish_reason"), reason, what)
            self._judge_usage(value.get("usage"), len(body["prompt"].encode()), tokens, what)
            if value.get("object") != "text_completion":
                raise Wrong(f'{what}: "object" must be "text_completion"; got {value.get("object")!r}')
            ids.append(value.get("id"))
        if not all(isinstance(each, str) and each for each in ids) or len(set(ids)) < len(ids):
            raise Wrong(f'"id" must be a string, another one for each request; got {ids}')
        if len(values["got"]) != len(inputs["bodies"]):
            raise ValueError("answers are missing")

    def _judge_asked(self, body: Mapping[str, Any], asked: list[Any], what: str) -> None:
        """What the engine got is what the client asked for."""
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
        raise Wrong(f"{what}: the engine must be asked to continue this very prompt; it was asked for {prompts[:100]}")

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


# Streams --------------------------------------------------------------------------------------------------------------


def _events(text: str) -> tuple[list[str], str]:
    """The data of each complete server-sent event, and what stands after the last of them."""
    *blocks, rest = re.split(r"\r\n\r\n|\n\n|\r\r", text)
    found = []
    for block in blocks:
        lines = [line[5:].removeprefix(" ") for line in block.splitlines() if line.startswith("data:")]
        if lines:
            found.append("\n".join(lines))
    return found, rest


def _streamed(text: str) -> str:
    """The text that a client has by now: what cannot be read adds nothing."""
    pieces = []
    for data in _events(text)[0]:
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
            pieces.append(str(json.loads(data)["choices"][0]["text"]))
    return "".join(pieces)


class CheckStream(ApiCheck):
    name = "check_stream"
    points = 4
    holds = "with stream: true each new piece of text is sent as an event when it is there, and [DONE] is the last"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        ends, cut = answers = _answers(draw, 15, draw.randint(30, 40))
        bodies = [{"prompt": ends, "max_tokens": 16, "stream": True}, {"prompt": cut, "stream": True}]
        return {"answers": answers, "bodies": bodies}

    def run(self, answer: ContractAnswer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"got": [], "late": None}
        with _served(answer, engine, outcome) as server:
            if server:
                first, second = inputs["bodies"]
                got = server.post(COMPLETIONS, first)
                outcome["late"] = self._step_by_step(engine, server, got, first["prompt"])
                got.wait()
                outcome["got"].append(got.plain())
                if got.ended:
                    got = server.post(COMPLETIONS, second)
                    got.wait()
                    outcome["got"].append(got.plain())
        return outcome

    def _step_by_step(self, engine: StandInEngine, server: Server, got: Any, prompt: str) -> Plain:
        """[step, what the client had then] of the first step whose text did not come before the next one; or None."""
        engine.hold()
        if not wait_until(lambda: got.ended or engine.knows(prompt)):
            engine.open()
            return None
        request, texts, late = engine.seen[-1] if engine.seen else None, [""], None
        while request and request.finish_reason is None and not got.ended and late is None:
            engine.allow()
            if not wait_until(lambda: engine.num_steps >= len(texts) or got.ended):
                break
            texts.append(request.stream.text)
            due = texts[-1]
            if server.thread.ident in engine.threads:  # a blocked loop is the concern of check_concurrent
                wait_until(lambda: engine.held or request.finish_reason is not None)
                due = texts[max(0, len(texts) - BLOCKED_LAG)]
            if request.finish_reason is None and not wait_until(
                lambda: got.ended or len(_streamed(got.text)) >= len(due)  # noqa: B023
            ):
                late = [engine.num_steps, _streamed(got.text)]
        engine.open()
        return late

    def judge(self, inputs: Inputs, values: Plain) -> None:
        _judge_serving(values)
        for number, (body, got) in enumerate(zip(inputs["bodies"], values["got"], strict=False)):
            what = f"POST {COMPLETIONS} with {_short(body)}"
            text = _ok(got, what)
            kind = got["headers"].get("content-type", "none")
            if not kind.startswith("text/event-stream"):
                raise Wrong(f"{what}: the content type must be text/event-stream; got {kind}")
            self._judge_events(text, body, inputs["answers"][body["prompt"]], what)
            if number == 0 and values["late"] is not None:
                step, had = values["late"]
                raise Wrong(
                    f"{what}: after step {step} of the engine the client had {had[-40:]!r} and nothing more came until "
                    "the next step: yield each output's new text as soon as step() has returned it"
                )
        if len(values["got"]) != len(inputs["bodies"]):
            raise ValueError("answers are missing")

    def _judge_events(self, text: str, body: Mapping[str, Any], answer: str, what: str) -> None:
        events, rest = _events(text)
        if rest.strip() or not events:
            raise Wrong(
                f'{what}: an event is "data: ", the JSON, and an empty line, so it ends in two newlines; got '
                f"{(rest or text)[:60]!r}"
            )
        if events[-1].strip() != "[DONE]":
            raise Wrong(f"{what}: the last event must be data: [DONE]; got {events[-1][:60]!r}")
        pieces, reasons = [], []
        for data in events[:-1]:
            value = _object(data, f"{what}: an event's data")
            if "error" in value:
                raise Wrong(f"{what}: an event says there was an error, {data[:80]}")
            if value.get("choices") == [] and value.get("usage"):
                continue  # as with OpenAI's stream_options
            choice = _choice(value, f"{what}: an event")
            pieces.append(choice["text"])
            reasons.append(choice.get("finish_reason"))
        expected, reason, _ = _expected(answer, body.get("max_tokens", 16))
        cumulative = len(pieces) > 2 and all(b.startswith(a) for a, b in itertools.pairwise(pieces))
        if cumulative and pieces[-1] == expected and "".join(pieces) != expected:
            raise Wrong(
                f"{what}: each event holds all the text so far; it must hold the new piece only: clients join them"
            )
        _judge_text("".join(pieces), expected, body["prompt"], f"{what}, the pieces joined")
        _judge_reason(reasons[-1] if reasons else None, reason, f"{what}, last piece")
        if any(each is not None for each in reasons[:-1]):
            raise Wrong(f"{what}: finish_reason must be null in all pieces but the last; got {reasons[:3]}")


# Several requests -----------------------------------------------------------------------------------------------------


class CheckConcurrent(ApiCheck):
    name = "check_concurrent"
    points = 4
    holds = "/health is answered while the engine computes, and requests that come together are computed together"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        return {"answers": _answers(draw, 260, 240, 280), "max_tokens": draw.randint(210, 230)}

    def run(self, answer: ContractAnswer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"got": [], "together": False}
        with _served(answer, engine, outcome) as server:
            if server:
                self._visit(server, engine, inputs, outcome)
        return outcome

    def _visit(self, server: Server, engine: StandInEngine, inputs: Inputs, outcome: dict[str, Any]) -> None:
        first, *others = inputs["answers"]
        engine.hold()
        got = [server.post(COMPLETIONS, {"prompt": first, "max_tokens": inputs["max_tokens"]})]
        if not wait_until(lambda: engine.held or got[0].ended):
            others = []  # nothing steps the engine
        health = server.get("/health")
        wait_until(lambda: health.ended or server.thread.ident in engine.threads)
        outcome["health"] = health.plain()
        if health.ended:
            got += [
                server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": inputs["max_tokens"]}) for prompt in others
            ]
            wait_until(lambda: len(engine.seen) == len(got), 3)  # at once if step() is no obstacle
            for _ in range(150):  # a queue or a lock lets them in between two steps
                if len(engine.seen) == len(got):
                    break
                engine.allow()
                wait_until(lambda: len(engine.seen) == len(got), 1)
            engine.open()
            wait_until(lambda: all(each.ended for each in got))
        outcome["largest_batch"] = engine.largest_batch
        outcome["got"] = [each.plain() for each in got]

    def judge(self, inputs: Inputs, values: Plain) -> None:
        _judge_serving(values)
        if values["blocked"]:
            raise Wrong(
                "engine.step() ran on the thread of the server's event loop: until it returns, no other request is "
                "answered, not even /health; step in a thread of its own, asyncio.to_thread, or a def endpoint"
            )
        if not values["health"]["ended"]:
            raise Wrong(
                "GET /health got no answer while engine.step() ran: it waits for the engine, through a lock that is "
                "held during a step or through a blocked event loop; it must not"
            )
        _ok(values["health"], "GET /health while the engine computes")
        _judge_threads(values["overlaps"])
        asked = [{"prompt": prompt, "max_tokens": inputs["max_tokens"]} for prompt in inputs["answers"]]
        for body, got in zip(asked, values["got"], strict=False):
            what = f"{len(asked)} requests at a time: POST {COMPLETIONS} with {_short(body)}"
            found = _strings(_object(_ok(got, what), what))
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
                f"{values['largest_batch']} in a step: one call of step() serves all, so hand each request in while "
                "others run, and let a waiting request have its turn between two steps"
            )


# Bad input ------------------------------------------------------------------------------------------------------------


class CheckBadInput(ApiCheck):
    name = "check_bad_input"
    points = 3
    holds = "what cannot be served is refused with a status of 4xx, also for streams, and leaves nothing behind"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        answers = _answers(draw, 20)
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

    def run(self, answer: ContractAnswer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"got": [], "good": None}
        with _served(answer, engine, outcome) as server:
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
        _judge_serving(values)
        for body, got in zip([*inputs["bodies"], inputs["broken"].encode()], values["got"], strict=False):
            what = f"POST {COMPLETIONS} with {_short(body)}"
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
                "4xx: let pydantic check the fields, and turn the engine's ValueError into one"
            )
        if values["left"]:
            raise Wrong(f"requests that were refused left {values['left']} in the engine")
        _ok(values["good"], f"POST {COMPLETIONS} with a good request, after bad ones,")


# Metrics --------------------------------------------------------------------------------------------------------------

METRICS = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "prompt_tokens_total": "counter",
    "generation_tokens_total": "counter",
    "request_success_total": "counter",
}
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL}(?:,{_LABEL})*,?)?)\}})?[ \t]+(\S+)(?:[ \t]+-?[\d.]+)?")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram|summary|untyped|unknown|info)")


def _scrape(got: Mapping[str, Any], when: str) -> dict[str, float]:
    """Prometheus text as {series: value}, such as 'request_success_total{finished_reason="stop"}'; or `Wrong`."""
    what = f"GET /metrics {when}"
    text = _ok(got, what)
    kind = got["headers"].get("content-type", "none")
    if not kind.startswith(("text/plain", "application/openmetrics-text")):
        raise Wrong(
            f"{what}: the content type must be that of Prometheus's text, text/plain; version=0.0.4; got {kind}, "
            "which Prometheus does not read"
        )
    series: dict[str, float] = {}
    types: dict[str, str] = {}
    for line in text.split("\n"):
        if line.startswith("# TYPE"):
            match = _TYPE.fullmatch(line.strip())
            if not match:
                raise Wrong(f'{what}: a type is declared as "# TYPE name counter"; got {line[:80]!r}')
            types[match[1]] = match[2]
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line.strip())
        try:
            value = float(match[3])  # type: ignore[index]
        except (TypeError, ValueError):
            raise Wrong(
                f'{what}: a line is a name, perhaps {{label="value"}}, a space and a number; got {line[:80]!r}'
            ) from None
        labels = ",".join(sorted(re.findall(_LABEL, match[2] or "")))  # type: ignore[index]
        name = f"{match[1]}{{{labels}}}" if labels else match[1]  # type: ignore[index]
        if name in series:
            raise Wrong(f"{what}: {name} is there twice")
        series[name] = value
    if text and not text.endswith("\n"):
        raise Wrong(f"{what}: the last line must end in a newline")
    for name, kind in METRICS.items():
        if name != "request_success_total" and name not in series:  # a label that never occurred has no series
            raise Wrong(f"{what}: {name} is missing; there are {', '.join(series)[:100] or 'no samples'}")
        declared = types.get(name, types.get(name.removesuffix("_total")))
        if declared != kind:
            raise Wrong(f'{what}: there must be a line "# TYPE {name} {kind}"; its type is {declared}')
    return series


class CheckMetrics(ApiCheck):
    name = "check_metrics"
    points = 2
    holds = "/metrics is Prometheus's text, and counts requests and tokens as they are served"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 4)
        answers = _answers(draw, draw.randint(10, 15), draw.randint(20, 40), draw.randint(20, 40))
        bodies = [{"prompt": prompt, "max_tokens": 16} for prompt in answers]
        return {"answers": answers, "bodies": bodies}

    def run(self, answer: ContractAnswer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"scrapes": {}, "got": []}

        def scrape(server: Server, when: str) -> None:
            got = server.get("/metrics")
            wait_until(lambda: got.ended or (engine.held and server.thread.ident in engine.threads))
            outcome["scrapes"][when] = got.plain()

        with _served(answer, engine, outcome) as server:
            if server:
                scrape(server, "before the first request")
                engine.hold()
                for number, body in enumerate(inputs["bodies"]):
                    got = server.post(COMPLETIONS, body)
                    if number == 0:
                        wait_until(lambda: engine.held or got.ended)  # noqa: B023
                        if server.thread.ident not in engine.threads:  # else check_concurrent says so
                            scrape(server, "while a request runs")
                        engine.open()
                    ended = got.wait()
                    outcome["got"].append(got.plain())
                    if not ended:
                        break
                scrape(server, "after three requests")
        return outcome

    def judge(self, inputs: Inputs, values: Plain) -> None:
        _judge_serving(values)
        scrapes = {when: _scrape(got, when) for when, got in values["scrapes"].items()}
        for body, got in zip(inputs["bodies"], values["got"], strict=False):
            _ok(got, f"POST {COMPLETIONS} with {_short(body)}")
        before, after = scrapes["before the first request"], scrapes["after three requests"]
        for when, running in (("while a request runs", 1), ("after three requests", 0)):
            value = scrapes.get(when, {}).get("num_requests_running", running)
            if value != running:
                raise Wrong(f"GET /metrics {when}: num_requests_running must be {running}; got {value:g}")
        done = [_expected(inputs["answers"][body["prompt"]], body["max_tokens"]) for body in inputs["bodies"]]
        wanted = {
            "prompt_tokens_total": sum(len(body["prompt"].encode()) for body in inputs["bodies"]),
            "generation_tokens_total": sum(tokens for _, _, tokens in done),
        }
        for reason in ("stop", "length"):
            count = sum(each == reason for _, each, _ in done)
            wanted[f'request_success_total{{finished_reason="{reason}"}}'] = count
        for name, value in wanted.items():
            grown = after.get(name, 0.0) - before.get(name, 0.0)
            if name not in after and value:
                raise Wrong(f"GET /metrics after three requests: {name} is missing")
            if grown != value:
                raise Wrong(f"GET /metrics: {name} must have grown by {value} with three requests, not {grown:g}")


# A client that leaves -------------------------------------------------------------------------------------------------


class CheckDisconnect(ApiCheck):
    name = "check_disconnect"
    points = 2
    holds = "when the client of a stream leaves, its request is aborted, and the others go on"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 5)
        return {"answers": _answers(draw, 600, 500), "steps": draw.randint(2, 4)}

    def run(self, answer: ContractAnswer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {"gone": False}
        automatic = gc.isenabled()
        gc.disable()  # it could run in this thread, and wait there for a step that this thread has to allow
        try:
            self._leave(answer, engine, inputs, outcome)
        finally:
            if automatic:
                gc.enable()
        return outcome

    def _leave(self, answer: ContractAnswer, engine: StandInEngine, inputs: Inputs, outcome: dict[str, Any]) -> None:
        with _served(answer, engine, outcome) as server:
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
                wait_until(lambda: bool(engine.overlaps), 3)  # at once if an abort waits for nobody
                for number in range(60):
                    if number % 20 == 1:  # a generator that is no coroutine ends when it is collected
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
        _judge_serving(values)
        leaves, stays = inputs["answers"]
        for each in values["early"]:
            _ok(each, f"POST {COMPLETIONS} with stream: true")
            raise Wrong("two streams of several hundred tokens: one was over before its client could leave")
        if not values["gone"]:
            raise Wrong(
                "the client of a stream left, and the engine went on with its request for 100 steps: abort it where "
                "the generator ends, in a `finally`, and do not wait there for a lock (a cancelled coroutine cannot)"
            )
        _judge_threads(values["overlaps"])
        what = f"POST {COMPLETIONS} with stream: true, beside a client that left,"
        _ok(values["stayed"], what)
        if values["reasons"].get(stays) not in ("stop", "length"):
            raise Wrong(f"{what} was aborted with the other: abort the request of the client that left, and only that")
        if leaves not in values["reasons"]:
            raise ValueError("the request never reached the engine")


# An engine that fails -------------------------------------------------------------------------------------------------


class CheckHealth(ApiCheck):
    name = "check_health"
    points = 1
    holds = "/health is 200 while the engine works and 503 once it has failed, and no request waits for it forever"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 6)
        return {"answers": _answers(draw, 30), "failure": f"CUDA error at 0x{draw.randrange(2**40):x}"}

    def run(self, answer: ContractAnswer, inputs: Inputs) -> Plain:
        engine = StandInEngine(inputs["answers"])
        outcome: dict[str, Any] = {}
        with _served(answer, engine, outcome) as server:
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
                    for _ in range(20):  # it may take a moment until it is known
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
        _judge_serving(values)
        _ok(values["idle"], "GET /health")
        for name, when in (("running", "that ran as engine.step() raised"), ("later", "after engine.step() raised")):
            got, what = values[name], f"POST {COMPLETIONS} {when}"
            if not got["ended"]:
                raise Wrong(f"{what}, was never answered: catch what step() raises, and tell those who wait")
            if got["status"] < 500:
                raise Wrong(f"{what}, was answered with status {got['status']}; it must be 500 or 503")
            if inputs["failure"] in got["text"]:
                raise Wrong(f"{what}: the client was sent the exception's text; that is for the log, not for clients")
        if values["failed"]["status"] != 503:
            raise Wrong(
                f"GET /health after engine.step() raised must be answered with status 503; got "
                f"{values['failed']['status']}: it must look at the engine, not say what is always true"
            )


check_completion, check_stream, check_concurrent = CheckCompletion(), CheckStream(), CheckConcurrent()
check_bad_input, check_metrics = CheckBadInput(), CheckMetrics()
check_disconnect, check_health = CheckDisconnect(), CheckHealth()

EXERCISE = Exercise(
    name="ex06_inference_api",
    checks=(
        check_completion, check_stream, check_concurrent, check_bad_input, check_metrics, check_disconnect,
        check_health,
    ),
)  # fmt: skip
