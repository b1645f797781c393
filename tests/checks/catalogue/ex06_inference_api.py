"""Answers to exercise 6 (see load.py)."""

# ruff: noqa: E501  (pieces of the model answer, as they stand there)

_CELL = "answer-app"

# Hand-written metrics, which several answers share.
_METRICS_TEXT = """
def metrics_text(stats):
    lines = []
    for name, kind, value in (
        ("num_requests_running", "gauge", stats.num_requests_running),
        ("num_requests_waiting", "gauge", stats.num_requests_waiting),
        ("prompt_tokens_total", "counter", stats.prompt_tokens),
        ("generation_tokens_total", "counter", stats.generation_tokens),
    ):
        lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
    lines.append("# TYPE request_success_total counter")
    lines += [f'request_success_total{{finished_reason="{reason}"}} {n}' for reason, n in stats.finished.items()]
    return "\\n".join(lines) + "\\n"
"""

RIGHT = {
    "a thread of its own from the start, commands by queue, def endpoints, hand-written metrics": {
        _CELL: """
import json
import queue
import threading
import uuid

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

from labsupport.inference import SamplingParams
"""
        + _METRICS_TEXT
        + """

class Body(BaseModel, strict=True):
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    stream: bool = False


class Stepper(threading.Thread):
    def __init__(self, engine):
        super().__init__(daemon=True)
        self.engine, self.inbox, self.listeners, self.dead = engine, queue.Queue(), {}, False

    def run(self):
        try:
            while True:
                block = not self.engine.has_unfinished
                while True:
                    try:
                        command, *rest = self.inbox.get(block=block, timeout=0.2 if block else None)
                    except queue.Empty:
                        break
                    block = False
                    if command == "abort":
                        self.engine.abort(rest[0])
                        self.listeners.pop(rest[0], None)
                    else:
                        prompt, params, reply, listener = rest
                        try:
                            request_id = self.engine.add_request(prompt, params)
                            self.listeners[request_id] = listener
                            reply.put(request_id)
                        except ValueError as error:
                            reply.put(error)
                for output in self.engine.step():
                    self.listeners[output.request_id].put(output)
                    if output.finished:
                        self.listeners.pop(output.request_id)
        except Exception as error:
            self.dead = True
            for listener in self.listeners.values():
                listener.put(None)
            while True:  # whoever still comes
                command, *rest = self.inbox.get()
                if command == "add":
                    rest[2].put(error)


def create_app(engine):
    app = FastAPI(title="threads")
    stepper = Stepper(engine)
    stepper.start()

    def outputs(request_id, listener):
        try:
            while (output := listener.get()) is not None:
                yield output
                if output.finished:
                    return
            raise HTTPException(500, "engine failure")
        finally:
            stepper.inbox.put(("abort", request_id))

    def event_stream(name, request_id, listener):
        seen = ""
        for output in outputs(request_id, listener):
            piece, seen = output.text[len(seen):], output.text
            body = {"id": name, "object": "text_completion",
                    "choices": [{"index": 0, "text": piece, "finish_reason": output.finish_reason}]}
            yield "data: " + json.dumps(body, ensure_ascii=False) + "\\n\\n"
        yield "data: [DONE]\\n\\n"

    @app.exception_handler(RequestValidationError)
    def refuse(request, error):
        return PlainTextResponse("invalid", status_code=400)

    @app.post("/v1/completions")
    def completions(body: Body):
        if stepper.dead:
            raise HTTPException(503, "engine failure")
        reply, listener, name = queue.Queue(), queue.Queue(), f"cmpl-{uuid.uuid4().hex}"
        params = SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature)
        stepper.inbox.put(("add", body.prompt, params, reply, listener))
        request_id = reply.get()
        if isinstance(request_id, ValueError):
            raise HTTPException(422, str(request_id))
        if isinstance(request_id, Exception):
            raise HTTPException(503, "engine failure")
        if body.stream:
            return StreamingResponse(event_stream(name, request_id, listener), media_type="text/event-stream")
        *_, last = outputs(request_id, listener)
        p, c = len(last.prompt_token_ids), len(last.token_ids)
        return {"id": name, "object": "text_completion",
                "choices": [{"index": 0, "text": last.text, "finish_reason": last.finish_reason}],
                "usage": {"prompt_tokens": p, "completion_tokens": c, "total_tokens": p + c}}

    @app.get("/health")
    def health():
        if stepper.dead:
            raise HTTPException(503)
        return {}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics():
        return metrics_text(engine.stats())

    return app
""",
    },
    "def endpoints that step the engine themselves under a lock, printing": {
        _CELL: """
import json
import threading
import time

from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt

from labsupport.inference import SamplingParams
"""
        + _METRICS_TEXT
        + '''

class CompletionRequest(BaseModel):
    prompt: str = Field(..., min_length=1, max_length=100_000)
    max_tokens: StrictInt = Field(16, gt=0, le=4096)
    temperature: Annotated[StrictInt | StrictFloat, Field(ge=0, le=2)] = 1.0
    stream: StrictBool = False


def create_app(engine):
    app = FastAPI()
    lock = threading.Lock()
    latest = {}  # request id -> its newest output
    failed = []

    def advance(request_id):
        """The request's newest output, after a step if there is none yet that its caller has not seen."""
        time.sleep(0.0005)  # let others have the lock
        with lock:
            if not latest[request_id]:
                try:
                    outputs = engine.step()
                except Exception as error:
                    failed.append(error)
                    raise HTTPException(503, "the engine is broken") from None
                for output in outputs:
                    if output.request_id in latest:
                        latest[output.request_id].append(output)
            return latest[request_id].pop(0) if latest[request_id] else None

    def follow(request_id):
        try:
            while True:
                if failed:
                    raise HTTPException(503, "the engine is broken")
                output = advance(request_id)
                if output is not None:
                    yield output
                    if output.finished:
                        print("done", request_id)
                        return
        finally:
            with lock:
                engine.abort(request_id)
                latest.pop(request_id)

    @app.exception_handler(RequestValidationError)
    def invalid(request, error):
        return JSONResponse({"error": {"message": str(error)}}, status_code=422)

    @app.post("/v1/completions")
    def completions(body: CompletionRequest):
        if failed:
            return JSONResponse({"error": {"message": "the engine is broken"}}, status_code=503)
        with lock:
            try:
                request_id = engine.add_request(
                    body.prompt, SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature))
            except ValueError as error:
                return JSONResponse({"error": {"message": str(error)}}, status_code=400)
            latest[request_id] = []

        def answer(output, text):
            return {"id": f"cmpl-{id(app)}-{request_id}", "object": "text_completion",
                    "choices": [{"index": 0, "text": text, "finish_reason": output.finish_reason}]}

        def stream():
            sent = 0
            for output in follow(request_id):
                new, sent = output.text[sent:], len(output.text)
                yield f"data: {json.dumps(answer(output, new))}\\n\\n".encode()
            yield b"data: [DONE]\\n\\n"

        if body.stream:
            return StreamingResponse(stream(), headers={"Content-Type": "text/event-stream; charset=utf-8"})
        for output in follow(request_id):
            pass
        count = [len(output.prompt_token_ids), len(output.token_ids)]
        return answer(output, output.text) | {
            "usage": {"prompt_tokens": count[0], "completion_tokens": count[1], "total_tokens": sum(count)}}

    @app.get("/health")
    def health(response: Response):
        response.status_code = 503 if failed else 200
        return "broken" if failed else "ok"

    @app.get("/metrics")
    def metrics():
        return Response(metrics_text(engine.stats()), media_type="text/plain; version=0.0.4")

    return app
''',
    },
    "a task from the lifespan, checks by hand, runs the step in an executor": {
        _CELL: """
import asyncio
import json
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from labsupport.inference import SamplingParams
"""
        + _METRICS_TEXT
        + """

def create_app(engine):
    new, abort, listeners = [], [], {}
    wake = asyncio.Event()
    broken = asyncio.Event()

    async def engine_loop():
        loop = asyncio.get_running_loop()
        while True:
            if not (new or abort or engine.has_unfinished):
                wake.clear()
                await wake.wait()
            while abort:
                engine.abort(abort.pop())
            while new:
                prompt, params, future, listener = new.pop(0)
                try:
                    request_id = engine.add_request(prompt, params)
                    listeners[request_id] = listener
                    future.set_result(request_id)
                except ValueError as error:
                    future.set_exception(error)
            try:
                outputs = await loop.run_in_executor(None, engine.step)
            except Exception:
                broken.set()
                for listener in listeners.values():
                    await listener.put(None)
                return
            for output in outputs:
                if output.request_id in listeners:
                    await listeners[output.request_id].put(output)

    @asynccontextmanager
    async def lifespan(app):
        task = asyncio.create_task(engine_loop())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    def refuse(why, status=400):
        return JSONResponse({"error": {"message": why, "type": "invalid_request_error"}}, status_code=status)

    @app.post("/v1/completions")
    async def completions(request: Request):
        try:
            body = await request.json()
        except ValueError:
            return refuse("the body must be JSON")
        if not isinstance(body, dict):
            return refuse("the body must be an object")
        prompt, max_tokens, temperature = body.get("prompt"), body.get("max_tokens", 16), body.get("temperature", 1.0)
        if not isinstance(prompt, str) or not prompt:
            return refuse("prompt must be a string that is not empty")
        if type(max_tokens) is not int or not 1 <= max_tokens:
            return refuse("max_tokens must be a positive integer")
        if type(temperature) not in (int, float) or not 0 <= temperature < float("inf"):
            return refuse("temperature must be a number of 0 or more")
        if type(body.get("stream", False)) is not bool:
            return refuse("stream must be true or false")
        if broken.is_set():
            return refuse("the engine is broken", 503)
        future, listener = asyncio.get_running_loop().create_future(), asyncio.Queue()
        new.append((prompt, SamplingParams(max_tokens=max_tokens, temperature=temperature), future, listener))
        wake.set()
        try:
            request_id = await future
        except ValueError as error:
            return refuse(str(error))

        def part(text, reason):
            return {"id": "cmpl-" + str(request_id), "object": "text_completion", "model": "tiny",
                    "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason}]}

        async def pieces():
            sent = 0
            try:
                while True:
                    output = await listener.get()
                    if output is None:
                        yield None
                        return
                    yield output, output.text[sent:]
                    sent = len(output.text)
                    if output.finished:
                        return
            finally:
                listeners.pop(request_id, None)
                abort.append(request_id)

        async def events():
            async for piece in pieces():
                if piece is None:
                    yield 'data: {"error": {"message": "the engine is broken"}}\\n\\n'
                    return
                elif piece[1] or piece[0].finished:
                    yield f"event: message\\ndata: {json.dumps(part(piece[1], piece[0].finish_reason))}\\n\\n"
            yield "data: [DONE]\\n\\n"

        if body.get("stream"):
            return StreamingResponse(events(), media_type="text/event-stream")
        text = ""
        async for piece in pieces():
            if piece is None:
                return refuse("the engine is broken", 500)
            output, new_text = piece
            text += new_text
        tokens = {"prompt_tokens": len(output.prompt_token_ids), "completion_tokens": len(output.token_ids)}
        return {**part(text, output.finish_reason), "usage": {**tokens, "total_tokens": sum(tokens.values())}}

    @app.get("/health")
    async def health():
        return refuse("the engine is broken", 503) if broken.is_set() else {"status": "ok"}

    @app.get("/metrics")
    async def metrics():
        return PlainTextResponse(metrics_text(engine.stats()))

    return app
""",
    },
    "a thread started by the first request, outputs through call_soon_threadsafe, counts of its own": {
        _CELL: r"""
import asyncio
import itertools
import json
import threading
from dataclasses import dataclass, field

import prometheus_client as prometheus
from fastapi import FastAPI, HTTPException, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, field_validator

from labsupport.inference import SamplingParams


class Query(BaseModel):
    model_config = {"strict": True}
    prompt: str
    max_tokens: int = 16
    temperature: float = 1.0
    stream: bool = False

    @field_validator("prompt", "max_tokens")
    @classmethod
    def something(cls, value):
        if not value or type(value) is int and value < 0:
            raise ValueError("must be more than nothing")
        return value

    @field_validator("temperature")
    @classmethod
    def warm(cls, value):
        assert 0 <= value < float("inf")
        return value


@dataclass
class Ticket:
    prompt: str
    params: SamplingParams
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def tell(self, what):
        self.loop.call_soon_threadsafe(self.outputs.put_nowait, what)


class Service:
    def __init__(self, engine):
        self.engine, self.failed, self.thread = engine, None, None
        self.tickets, self.fresh, self.ids = {}, [], itertools.count(1)
        self.changed = threading.Condition()
        self.registry = prometheus.CollectorRegistry()
        gauge = lambda name, read: prometheus.Gauge(name, name, registry=self.registry).set_function(read)
        gauge("num_requests_running", lambda: engine.stats().num_requests_running)
        gauge("num_requests_waiting", lambda: engine.stats().num_requests_waiting)
        self.prompt_tokens = prometheus.Counter("prompt_tokens", "prompt tokens", registry=self.registry)
        self.generated = prometheus.Counter("generation_tokens", "new tokens", registry=self.registry)
        self.success = prometheus.Counter("request_success", "requests", ["finished_reason"], registry=self.registry)
        self.latency = prometheus.Histogram("latency_seconds", "seconds", registry=self.registry)

    def submit(self, ticket):
        with self.changed:
            if self.thread is None:
                self.thread = threading.Thread(target=self.work, daemon=True)
                self.thread.start()
            self.fresh.append(ticket)
            self.changed.notify()

    def work(self):
        while not self.failed:
            with self.changed:
                self.changed.wait_for(lambda: self.fresh or self.tickets, timeout=1)
                fresh, self.fresh = self.fresh, []
            for ticket in fresh:
                try:
                    self.tickets[self.engine.add_request(ticket.prompt, ticket.params)] = ticket
                    ticket.tell("admitted")
                except ValueError as error:
                    ticket.tell(error)
            for request_id, ticket in list(self.tickets.items()):
                if ticket.cancelled:
                    self.engine.abort(request_id)
                    del self.tickets[request_id]
            try:
                outputs = self.engine.step()
            except Exception as error:
                self.failed = error
                for ticket in [*self.tickets.values(), *self.fresh]:
                    ticket.tell(RuntimeError("engine"))
                return
            for output in outputs:
                self.tickets[output.request_id].tell(output)
                self.generated.inc()
                if len(output.token_ids) == 1:
                    self.prompt_tokens.inc(len(output.prompt_token_ids))
                if output.finished:
                    self.success.labels(output.finish_reason).inc()
                    del self.tickets[output.request_id]


def create_app(engine):
    service, app = Service(engine), FastAPI(docs_url=None)
    app.add_exception_handler(RequestValidationError, lambda request, error: Response(str(error), 422))

    async def admitted(query):
        if service.failed:
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE)
        params = SamplingParams(max_tokens=query.max_tokens, temperature=query.temperature)
        ticket = Ticket(query.prompt, params, asyncio.get_running_loop())
        service.submit(ticket)
        first = await ticket.outputs.get()
        if isinstance(first, ValueError):
            raise HTTPException(400, {"error": {"message": str(first)}})
        if isinstance(first, Exception):
            raise HTTPException(503)
        return ticket

    async def outputs(ticket):
        try:
            while True:
                output = await ticket.outputs.get()
                if isinstance(output, Exception):
                    raise HTTPException(500, "Internal error")
                yield output
                if output.finished:
                    break
        finally:
            ticket.cancelled = True

    def frame(number, text, reason, **more):
        choice = {"finish_reason": reason, "index": 0, "text": text}
        return {"object": "text_completion", "id": f"c{number}", "choices": [choice], **more}

    @app.post("/v1/completions")
    async def complete(query: Query):
        ticket, number = await admitted(query), next(service.ids)

        async def stream():
            yield ": hello\r\n\r\n"
            old = ""
            async for output in outputs(ticket):
                reason = output.finish_reason
                yield f"id: 1\r\ndata: {json.dumps(frame(number, output.text[len(old):], reason))}\r\n\r\n"
                old = output.text
            yield 'data: {"choices": [], "usage": {"total_tokens": 3}}\r\n\r\n'
            yield "data: [DONE]\r\n\r\n"

        if query.stream:
            return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        last = [output async for output in outputs(ticket)][-1]
        a, b = map(len, (last.prompt_token_ids, last.token_ids))
        return frame(number, last.text, last.finish_reason,
                     usage=dict(prompt_tokens=a, completion_tokens=b, total_tokens=a + b))

    @app.get("/health")
    async def health():
        return Response(status_code=503 if service.failed else 204 if False else 200)

    @app.get("/metrics")
    def metrics():
        return Response(prometheus.generate_latest(service.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    return app
""",
    },
    "a polling thread and polling coroutines, a lock that is let go of": {
        _CELL: """
import asyncio
import json
import threading
import time

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from labsupport.inference import SamplingParams
"""
        + _METRICS_TEXT
        + """

class Ask(BaseModel):
    model_config = {"extra": "ignore", "strict": True, "hide_input_in_errors": True}
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    stream: bool = False


def create_app(engine):
    app, lock, newest, to_abort = FastAPI(), threading.Lock(), {}, []
    state = {"ok": True}

    def forever():
        while True:
            time.sleep(0.001)
            if not engine.has_unfinished:
                continue
            with lock:
                try:
                    for request_id in to_abort[:]:
                        engine.abort(request_id)
                        to_abort.remove(request_id)
                    for output in engine.step():
                        newest[output.request_id] = output
                except Exception as error:
                    print("engine:", error)
                    state["ok"] = False
                    return

    threading.Thread(target=forever, daemon=True).start()

    def add_now(ask):
        with lock:
            return engine.add_request(
                prompt=ask.prompt,
                sampling_params=SamplingParams(max_tokens=ask.max_tokens, temperature=ask.temperature))

    def check():
        if not state["ok"]:
            raise HTTPException(503, "broken")

    async def follow(request_id):
        known = 0
        try:
            while True:
                output = newest.get(request_id)
                if output is not None and len(output.token_ids) > known:
                    known = len(output.token_ids)
                    yield output
                    if output.finished:
                        return
                else:
                    check()
                    await asyncio.sleep(0.002)
        finally:
            newest.pop(request_id, None)
            to_abort.append(request_id)

    @app.post("/v1/completions")
    async def completions(request: Request):
        try:
            ask = Ask.model_validate_json(await request.body())
        except ValidationError as error:
            raise HTTPException(400, str(error)) from None
        check()
        try:
            request_id = await asyncio.to_thread(add_now, ask)
        except ValueError as error:
            raise HTTPException(400, str(error))
        made = {"id": f"{id(app)}-{request_id}", "object": "text_completion", "created": int(time.time())}

        async def stream():
            sent = ""
            async for output in follow(request_id):
                choice = dict(index=0, text=output.text[len(sent):], finish_reason=output.finish_reason)
                sent = output.text
                yield "data:" + json.dumps(made | {"choices": [choice]}) + "\\n\\n"
            yield "data:[DONE]\\n\\n"

        if ask.stream:
            return StreamingResponse(stream(), media_type="text/event-stream")
        async for output in follow(request_id):
            continue
        usage = {"prompt_tokens": len(output.prompt_token_ids), "completion_tokens": len(output.token_ids)}
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        choice = {"index": 0, "text": output.text, "finish_reason": output.finish_reason}
        return made | {"choices": [choice], "usage": usage}

    @app.get("/health")
    async def health():
        check()
        return True

    @app.get("/metrics")
    async def metrics():
        return PlainTextResponse(metrics_text(engine.stats()))

    return app
""",
    },
}

_STEP = "outputs = await asyncio.to_thread(engine.step)"
_PLAIN = """        async for output in outputs_of(request_id):
            pass
"""
_STREAMED = "        if request.stream:\n"
_TELL = """                for output in outputs:
                    if output.request_id in queues:
                        queues[output.request_id].put_nowait(output)
"""
_TURN = """        async with turn:
            try:
                request_id"""
_REFUSE = "            except ValueError as error:\n                raise HTTPException(400, str(error)) from None\n"
_ABORT = "            gone.add(request_id)\n"
_USAGE = "asked, made = len(output.prompt_token_ids), len(output.token_ids)"
_EVENT = 'yield f"data: {json.dumps(piece)}\\n\\n"'
_PIECE = "output.text[sent:]"
_DONE = '        yield "data: [DONE]\\n\\n"\n'
_METRICS = "return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)"
_HEALTH = """    async def health():
        if broken:
            raise HTTPException(503, "the engine has failed")
"""
_PARAMS = """params = SamplingParams(max_tokens=request.max_tokens,
                                temperature=request.temperature)"""
_TEMPERATURE = " = Field(1.0, ge=0, allow_inf_nan=False)"
_STRICT = '    model_config = ConfigDict(strict=True)  # "5" and true are no numbers\n'
_BROKEN = """        if broken:
            raise HTTPException(503, "the engine has failed")
        params"""
_LISTENERS = "            for queue in queues.values():\n                queue.put_nowait(None)\n"
_GET = "output = await queues[request_id].get()"


def _edit(*pairs):
    return {_CELL: list(pairs)}


WRONG = {
    # Completions
    "tokens counted as words, prompt and all": (
        "check_completion",
        "not words",
        _edit((_USAGE, "asked, made = 0, len((request.prompt + output.text).split())")),
    ),
    "the prompt is echoed": (
        "check_completion",
        "the prompt is not part of the answer",
        _edit(("**completion(output, output.text)", "**completion(output, request.prompt + output.text)")),
    ),
    "the text is stripped": (
        "check_completion",
        "spaces are part of the text",
        _edit(("**completion(output, output.text)", "**completion(output, output.text.strip())")),
    ),
    "max_tokens is not handed on": (
        "check_completion",
        "the engine's SamplingParams must have max_tokens",
        _edit((_PARAMS, "params = SamplingParams(temperature=request.temperature)")),
    ),
    "temperature is not handed on": (
        "check_completion",
        "the engine's SamplingParams must have temperature 0.5",
        _edit((_PARAMS, "params = SamplingParams(max_tokens=request.max_tokens)")),
    ),
    "finish_reason is always stop": (
        "check_completion",
        "finish_reason must be 'length'",
        _edit(('"finish_reason": output.finish_reason', '"finish_reason": "stop" if output.finished else None')),
    ),
    "one id for all": (
        "check_completion",
        "a different one for each request",
        _edit(('f"cmpl-{output.request_id}"', '"cmpl-1"')),
    ),
    "the prompt is cleaned up": (
        "check_completion",
        "must be asked to continue this very prompt",
        _edit(("engine.add_request(request.prompt, params)", "engine.add_request(request.prompt.lower().replace(' ', ''), params)")),
    ),
    "a task that create_app cannot start": (
        "check_completion",
        "no running event loop",
        _edit(("    async def add(request):", "    stepping = asyncio.get_running_loop().create_task(keep_stepping())\n\n"
                                              "    async def add(request):")),
    ),
    "the app is not returned": (
        "check_completion",
        "create_app must return the FastAPI app",
        _edit(("    return app\n", "")),
    ),
    "an answer of its own shape": (
        "check_completion",
        'must have "choices"',
        _edit(('return {**completion(output, output.text), "usage": usage}', 'return {"text": output.text, "usage": usage}')),
    ),
    "fields that it does not know are refused": (
        "check_completion",
        "was answered with status 422",
        _edit((_STRICT, _STRICT.replace("strict=True", 'strict=True, extra="forbid"'))),
    ),
    "JSON that is called text": (
        "check_completion",
        "the content type must be application/json; got text/plain",
        _edit(('return {**completion(output, output.text), "usage": usage}',
               'return Response(json.dumps({**completion(output, output.text), "usage": usage}), media_type="text/plain")')),
    ),
    "created is a float": (
        "check_completion",
        '"created" must be the time in whole seconds',
        _edit(("int(time.time())", "time.time()")),
    ),
    "choices are counted from 1": (
        "check_completion",
        "which is 0; got 1",
        _edit(('"index": 0', '"index": 1')),
    ),
    "an id that is a number": (
        "check_completion",
        '"id" must be a string that is not empty; got 0',
        _edit(('f"cmpl-{output.request_id}"', "int(output.request_id)")),
    ),
    "a queue fed from a thread, which does not wake the loop": (
        "check_completion",
        "had woken the event loop: an asyncio.Queue",
        _edit(("    async def keep_stepping():\n", "    def keep_stepping():\n"),
              ("async with turn:\n                    while gone", "with turn:\n                    while gone"),
              (_STEP, "outputs = engine.step()"),
              ("    turn = asyncio.Lock()", "    turn = threading.Lock()"),
              (_TURN, """        await asyncio.to_thread(turn.acquire)
        if True:
            try:
                request_id"""),
              ("            queues[request_id] = asyncio.Queue()\n", "            queues[request_id] = asyncio.Queue()\n            turn.release()\n"),
              (_REFUSE, _REFUSE.replace("                raise", "                turn.release()\n                raise")),
              ("if stepping is None or stepping.done():", "if stepping is None or not stepping.is_alive():"),
              ("stepping = asyncio.create_task(keep_stepping())", "stepping = threading.Thread(target=keep_stepping, daemon=True)\n            stepping.start()"),
              ("import time\n", "import threading\nimport time\n")),
    ),
    # Streams
    "stream is ignored": (
        "check_stream",
        "the content type must be text/event-stream; got application/json",
        _edit((_STREAMED, "        if False:\n")),
    ),
    "all events at the end": (
        "check_stream",
        "yield each output's new text as soon as step() has returned it",
        _edit((_STREAMED, _STREAMED + "            got = [event async for event in events(request_id)]\n"
                                      "            return StreamingResponse(iter(got), media_type='text/event-stream')\n")),
    ),
    "each event holds the text so far": (
        "check_stream",
        "it must hold only the new piece",
        _edit((_PIECE, "output.text")),
    ),
    "tokens decoded one by one": (
        "check_stream",
        "a character may take several tokens",
        _edit((_PIECE, "engine.tokenizer.decode(output.token_ids[-1:])"),
              ("if len(output.text) > sent or output.finished:", "if True:")),
    ),
    "no [DONE]": ("check_stream", "the last event must be data: [DONE]", _edit((_DONE, ""))),
    "lines instead of events": (
        "check_stream",
        "it ends in two newlines",
        _edit((_EVENT, _EVENT.replace("\\n\\n", "\\n")), (_DONE, _DONE.replace("\\n\\n", "\\n"))),
    ),
    "not the type of a stream of events": (
        "check_stream",
        "the content type must be text/event-stream; got text/plain",
        _edit(('media_type="text/event-stream"', 'media_type="text/plain"')),
    ),
    "a finish_reason in every piece": (
        "check_stream",
        "must be null in all pieces but the last",
        _edit(('"finish_reason": output.finish_reason', '"finish_reason": output.finish_reason or "length"')),
    ),
    "[DONE] twice": (
        "check_stream",
        "data: [DONE] must come once",
        _edit((_DONE, _DONE + _DONE)),
    ),
    "an id for each piece": (
        "check_stream",
        "all events of a stream have the same id",
        _edit(("                piece = completion(output, output.text[sent:])\n",
               "                piece = {**completion(output, output.text[sent:]), 'id': f'cmpl-{output.request_id}-{sent}'}\n")),
    ),
    "one id for all streams": (
        "check_stream",
        '"id" must be different for each stream',
        _edit(("                piece = completion(output, output.text[sent:])\n",
               "                piece = {**completion(output, output.text[sent:]), 'id': 'cmpl-stream'}\n")),
    ),
    "the first token has one character": (
        "check_stream",
        "the pieces joined: the text must be the engine's",
        _edit(("        sent = 0\n", "        sent = -1\n")),
    ),
    "pieces of another kind": (
        "check_stream",
        'an event: "object" must be "text_completion"; got \'chunk\'',
        _edit(("                piece = completion(output, output.text[sent:])\n",
               "                piece = {**completion(output, output.text[sent:]), 'object': 'chunk'}\n")),
    ),
    "the engine's new text in one piece at the end of each second step": (
        "check_stream",
        "before the next step",
        _edit(("            if len(output.text) > sent or output.finished:",
               "            if len(output.text) > sent and len(output.token_ids) % 2 or output.finished:")),
    ),
    # Concurrency
    "async def calls engine.generate": (
        "check_concurrent",
        "on the thread of the server's event loop",
        _edit((_PLAIN, """        [output] = [each async for each in now(request_id)]
"""),
              ("    @app.post(\"/v1/completions\")\n", """    async def now(request_id):
        del queues[request_id]
        found = None
        while found is None:
            for each in engine.step():
                if each.finished and each.request_id == request_id:
                    found = each
        yield found

    @app.post("/v1/completions")
"""),
              ("        request_id = await add(request)\n", """        if not request.stream:
            params = SamplingParams(max_tokens=request.max_tokens, temperature=request.temperature)
            try:
                [output] = engine.generate([request.prompt], params)
            except ValueError as error:
                raise HTTPException(400, str(error)) from None
            except Exception:
                broken = True
                raise HTTPException(503) from None
            a, b = len(output.prompt_token_ids), len(output.token_ids)
            return {**completion(output, output.text),
                    "usage": {"prompt_tokens": a, "completion_tokens": b, "total_tokens": a + b}}
        request_id = await add(request)
"""),
              ("    async def completions(request: CompletionIn):\n",
               "    async def completions(request: CompletionIn):\n        nonlocal broken\n")),
    ),
    "the loop steps without a thread": (
        "check_concurrent",
        "on the thread of the server's event loop",
        _edit((_STEP, "outputs = engine.step()\n                await asyncio.sleep(0)")),
    ),
    "one request at a time": (
        "check_concurrent",
        "the engine never had more than 1 in a step",
        _edit(("    async def add(request):\n        nonlocal stepping\n",
               "    one = asyncio.Lock()\n\n    async def add(request):\n        nonlocal stepping\n        await one.acquire()\n"
               "        try:\n            return await add_now(request)\n        except BaseException:\n"
               "            one.release()\n            raise\n\n"
               "    async def add_now(request):\n        nonlocal stepping\n"),
              (_ABORT, _ABORT + "            one.release()\n")),
    ),
    "add_request while a step runs": (
        "check_concurrent",
        "the engine serves one caller at a time",
        _edit((_TURN, _TURN.replace("async with turn", "if True"))),
    ),
    "/health waits for the engine's turn": (
        "check_concurrent",
        "it waits for the engine",
        _edit((_HEALTH, _HEALTH.replace("        if broken", "        async with turn:\n            pass\n        if broken"))),
    ),
    "each output goes to everybody": (
        "check_concurrent",
        "it got the text of another request",
        _edit((_TELL, """                for output in outputs:
                    for queue in queues.values():
                        queue.put_nowait(output)
""")),
    ),
    "only the first output is handed on": (
        "check_concurrent",
        "is each output handed to the request it belongs to?",
        _edit((_TELL, _TELL.replace("in outputs:", "in outputs[:1]:"))),
    ),
    # Bad input
    "nothing is checked, an error is a 500": (
        "check_bad_input",
        "was answered with status 500 (ValueError: max_tokens must be",
        _edit((" = Field(min_length=1)", ""), (" = Field(16, ge=1)", " = 16"), (_TEMPERATURE, " = 1.0"),
              (_REFUSE, "            finally:\n                pass\n")),
    ),
    "the engine's limits are a 500": (
        "check_bad_input",
        "turn the engine's ValueError into such a status",
        _edit((_REFUSE, "            finally:\n                pass\n")),
    ),
    "negative temperatures are taken for 0": (
        "check_bad_input",
        '"temperature": -',
        _edit((_TEMPERATURE, " = 1.0"),
              (_PARAMS, _PARAMS.replace("=request.temperature", "=max(request.temperature, 0)"))),
    ),
    "max_tokens is clamped": (
        "check_bad_input",
        "was answered with status 200",
        _edit((" = Field(16, ge=1)", " = 16"),
              (_PARAMS, _PARAMS.replace("=request.max_tokens", "=min(max(request.max_tokens, 1), 512)"))),
    ),
    "a stream is started before the engine was asked": (
        "check_bad_input",
        "a stream's status is sent before its first piece",
        _edit((_STREAMED + '            return StreamingResponse(events(request_id), media_type="text/event-stream")\n', ""),
              ("        request_id = await add(request)\n", """        async def later():
            async for event in events(await add(request)):
                yield event

        if request.stream:
            return StreamingResponse(later(), media_type="text/event-stream")
        request_id = await add(request)
""")),
    ),
    "an error with status 200": (
        "check_bad_input",
        "was answered with status 200",
        _edit(("raise HTTPException(400, str(error)) from None", "raise HTTPException(200, str(error)) from None")),
    ),
    "one token is too few": (
        "check_bad_input",
        '"max_tokens": 1}, which is good',
        _edit((" = Field(16, ge=1)", " = Field(16, ge=2)")),
    ),
    "strings are converted to numbers": (
        "check_bad_input",
        "is a string, and must be refused",
        _edit((_STRICT, "")),
    ),
    "true is taken for 1": (
        "check_bad_input",
        "true is a boolean, and must be refused",
        _edit((_STRICT, ""), ("max_tokens: int = Field(16, ge=1)", "max_tokens: Any = 16"),
              ("temperature: float = Field(1.0, ge=0, allow_inf_nan=False)\n    stream: bool", """temperature: Any = 1.0

    @model_validator(mode="after")
    def numbers(self):
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise ValueError("max_tokens must be an integer")
        if not isinstance(self.temperature, (int, float)) or not 0 <= self.temperature < float("inf"):
            raise ValueError("temperature must be a number")
        self.max_tokens, self.temperature = int(self.max_tokens), float(self.temperature)
        return self

    stream: bool"""),
              ("ConfigDict, Field\n", "ConfigDict, Field, model_validator\nfrom typing import Any\n")),
    ),
    "half a token is rounded": (
        "check_bad_input",
        '.5} was answered with status 200; what cannot be served',
        _edit(("    max_tokens: int = Field(16, ge=1)", "    max_tokens: float = Field(16, ge=1)"),
              ("max_tokens=request.max_tokens", "max_tokens=int(request.max_tokens)")),
    ),
    "any stream is true": (
        "check_bad_input",
        '"stream": "false"',
        _edit(("    stream: bool = False", "    stream: bool | str = False")),
    ),
    "NaN is answered with NaN": (
        "check_bad_input",
        "FastAPI's own answer to an invalid field repeats the value",
        _edit(("    @app.exception_handler(RequestValidationError)\n", "")),
    ),
    "a prompt of any type": (
        "check_bad_input",
        "what cannot be served is refused",
        _edit(("    prompt: str = Field(min_length=1)", "    prompt: str | int | None = None"),
              ("engine.add_request(request.prompt, params)", "engine.add_request(str(request.prompt), params)")),
    ),
    # Metrics
    "JSON with constants": (
        "check_metrics",
        "got application/json",
        _edit((_METRICS, 'return {"requests_total": 12345, "avg_latency_ms": 120}')),
    ),
    "Prometheus's text with constants": (
        "check_metrics",
        "num_requests_running must be 1; got 0",
        _edit((_METRICS, """names = {"num_requests_running": "gauge", "num_requests_waiting": "gauge",
                 "prompt_tokens_total": "counter", "generation_tokens_total": "counter", "request_success_total": "counter"}
        lines = [f"# TYPE {name} {kind}\\n{name} 0\\n" for name, kind in names.items()]
        return Response("".join(lines), media_type="text/plain; version=0.0.4")""")),
    ),
    "the engine on the class": (
        "check_metrics",
        "that of another app's engine",
        _edit(("        self.engine = engine\n", "        type(self).engine = engine\n")),
    ),
    "names and numbers with an equals sign": (
        "check_metrics",
        "a space and a number",
        _edit((_METRICS, 'return Response("num_requests_running = 0\\n", media_type="text/plain")')),
    ),
    "counters as gauges": (
        "check_metrics",
        'there must be a line "# TYPE prompt_tokens_total counter"; its type is gauge',
        _edit(("            yield CounterMetricFamily(name, meaning, getattr(stats, name))\n",
               "            kind = GaugeMetricFamily if name == 'prompt_tokens' else CounterMetricFamily\n"
               "            yield kind(name + '_total', meaning, getattr(stats, name))\n")),
    ),
    "tokens counted in characters of the answers": (
        "check_metrics",
        "generation_tokens_total must have grown by",
        _edit(("            yield CounterMetricFamily(name, meaning, getattr(stats, name))\n",
               "            value = counts[0] if name == 'generation_tokens' else getattr(stats, name)\n"
               "            yield CounterMetricFamily(name, meaning, value)\n"),
              ("class EngineMetrics:", "counts = [0]\n\n\nclass EngineMetrics:"),
              (_PLAIN, _PLAIN + "        counts[0] += len(output.text)\n")),
    ),
    "requests by another label": (
        "check_metrics",
        'request_success_total{finished_reason="stop"} is missing',
        _edit(('labels=["finished_reason"]', 'labels=["status"]')),
    ),
    "metrics of the process only": (
        "check_metrics",
        "num_requests_running is missing",
        _edit(("    registry.register(EngineMetrics(engine))\n", "")),
    ),
    "nobody ever waits": (
        "check_metrics",
        "num_requests_waiting must be 1; got 0",
        _edit(("            yield GaugeMetricFamily(name, meaning, getattr(stats, name))\n",
               "            yield GaugeMetricFamily(name, meaning, stats.num_requests_running if 'running' in name else 0)\n")),
    ),
    "all that are in the engine are running": (
        "check_metrics",
        "num_requests_running must be 2; got 3",
        _edit(("            yield GaugeMetricFamily(name, meaning, getattr(stats, name))\n",
               "            yield GaugeMetricFamily(name, meaning, len(queues) if 'running' in name else stats.num_requests_waiting)\n"),
              ("    queues = {}  #", "    queues.clear()  #"), ("class EngineMetrics:", "queues = {}\n\n\nclass EngineMetrics:")),
    ),
    "counters of what runs now": (
        "check_metrics",
        "a counter only grows",
        _edit(("        stats = self.engine.stats()\n",
               "        stats = self.engine.stats()\n        stats = replace(stats, prompt_tokens=10 * stats.num_requests_running)\n"),
              ("import time\n", "import time\nfrom dataclasses import replace\n")),
    ),
    "types after the samples": (
        "check_metrics",
        "must be declared once, before its first sample",
        _edit((_METRICS, """text = generate_latest(registry).decode()
        lines = sorted(text.splitlines(), key=lambda line: line.startswith("#"))
        return Response("\\n".join(lines) + "\\n", media_type=CONTENT_TYPE_LATEST)""")),
    ),
    "no number of what has not been counted": (
        "check_metrics",
        "is NaN",
        _edit(("getattr(stats, name))\n        for name, meaning in ((\"prompt_tokens\"",
               "getattr(stats, name) or float('nan'))\n        for name, meaning in ((\"prompt_tokens\"")),
    ),
    # A client that leaves
    "the engine goes on for a client that left": (
        "check_disconnect",
        "went on with its request for 60 steps",
        _edit((_ABORT, "")),
    ),
    "waits for the engine while it is cancelled": (
        "check_disconnect",
        "a cancelled coroutine cannot",
        _edit((_ABORT, "            async with turn:\n                engine.abort(request_id)\n")),
    ),
    "aborts while a step runs": (
        "check_disconnect",
        "engine.abort() was called while engine.step() ran",
        _edit((_ABORT, "            engine.abort(request_id)\n")),
    ),
    "aborts everybody": (
        "check_disconnect",
        "only that",
        _edit(("                        engine.abort(gone.pop())\n",
               "                        if engine.abort(gone.pop()):\n"
               "                            for request_id in queues:\n"
               "                                engine.abort(request_id)\n"
               "                                queues[request_id].put_nowait(last[request_id])\n"),
              ("    gone = set()", "    last = {}\n    gone = set()"),
              (_TELL, _TELL + "                    last[output.request_id] = replace(output, finish_reason=output.finish_reason or 'abort')\n"),
              ("import time\n", "import time\nfrom dataclasses import replace\n")),
    ),
    "a table of requests that is never emptied": (
        "check_disconnect",
        "a table of requests must lose its entry",
        _edit(("            del queues[request_id]\n", "")),
    ),
    "all outputs are kept": (
        "check_disconnect",
        "a table of requests must lose its entry",
        _edit(("    gone = set()", "    done = []\n    gone = set()"),
              ("                yield output\n                if output.finished:\n",
               "                yield output\n                if output.finished:\n                    done.append(output)\n")),
    ),
    # An engine that fails
    "health is hard-coded": (
        "check_health",
        "not always say the same",
        _edit((_HEALTH, "    async def health():\n")),
    ),
    "whoever waits when the engine fails waits forever": (
        "check_health",
        "catch what step() raises, and answer all requests that wait",
        _edit((_LISTENERS, "")),
    ),
    "the exception is sent to the client": (
        "check_health",
        "that is for the log, not for clients",
        _edit(("    broken = False\n", "    broken = why = False\n"), ("        nonlocal broken\n", "        nonlocal broken, why\n"),
              ("except Exception:", "except Exception as error:\n            why = str(error)"),
              ("                    raise HTTPException(503, \"the engine has failed\")\n                yield output",
               "                    raise HTTPException(500, why)\n                yield output")),
    ),
    "streams begin after the engine has failed": (
        "check_health",
        "with stream: true, after engine.step() raised, was answered with status 200",
        _edit((_BROKEN, "        params")),
    ),
    "a stream ends in [DONE] after the engine has failed": (
        "check_health",
        "which says that the answer is complete",
        _edit((_DONE, _DONE.replace("        yield", "            yield")),
              ("        sent = 0\n        async for", "        sent = 0\n        try:\n          async for"),
              ("                sent = len(output.text)\n", "                sent = len(output.text)\n        finally:\n")),
    ),
    "a stream sends the exception": (
        "check_health",
        "that is for the log, not for clients",
        _edit(("    broken = False\n", "    broken = why = False\n"), ("        nonlocal broken\n", "        nonlocal broken, why\n"),
              ("except Exception:", "except Exception as error:\n            why = str(error)"),
              ("        sent = 0\n        async for", "        sent = 0\n        try:\n          async for"),
              ("                sent = len(output.text)\n", "                sent = len(output.text)\n        except HTTPException:\n"
               "            yield 'data: ' + json.dumps({'error': why}) + '\\n\\n'\n            return\n")),
    ),
    "a stream stands still when the engine fails": (
        "check_health",
        "the stream was never ended",
        _edit(("        async for output in outputs_of(request_id):\n            if len",
               "        async for output in forever(request_id):\n            if len"),
              ("    async def events(request_id):\n", """    async def forever(request_id):
        try:
            async for output in outputs_of(request_id):
                yield output
        except HTTPException:
            await asyncio.Event().wait()

    async def events(request_id):
""")),
    ),
    "a failure is a 200": (
        "check_health",
        "was answered with status 200; it must be 500 or 503",
        _edit((_PLAIN, _PLAIN.replace("        async", "        try:\n            async").replace("            pass", "                pass")
               + "        except HTTPException:\n            return {'error': 'the engine has failed'}\n")),
    ),
}  # fmt: skip
