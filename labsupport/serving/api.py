"""`create_app`: an OpenAI-compatible server around an engine.

    app = create_app(LLMEngine(load_lm("tiny")))
    uvicorn.run(app, port=8000)

Endpoints: `/v1/completions`, `/v1/chat/completions`, `/v1/models`; `/health` (restart me?), `/ready` (send me
requests?), `/metrics` (Prometheus). A process has one engine, which serves all its requests. To scale out, run more
such processes behind a load balancer; uvicorn's own workers would each load the model, unknown to one another.

A request passes each file once: middleware.py (key, size) -> protocol.py (schema) -> inputs.py (token ids, sampling
parameters) -> generation.py (all choices) -> respond.py, which renders the answer (completions.py or chat.py) whole or
as events (sse.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from labsupport import __version__
from labsupport.serving import errors
from labsupport.serving.access import Access
from labsupport.serving.answer_schema import ChatResponse, CompletionResponse, Model, ModelList, Status
from labsupport.serving.backend import Backend
from labsupport.serving.chat import ChatAnswer
from labsupport.serving.chat_template import ChatTemplate, chat_template
from labsupport.serving.completions import CompletionAnswer
from labsupport.serving.context import Context
from labsupport.serving.engine_thread import as_backend
from labsupport.serving.errors import RESPONSES, ApiError
from labsupport.serving.generation import Generation
from labsupport.serving.inputs import chat_inputs, completion_inputs
from labsupport.serving.metrics import Metrics
from labsupport.serving.middleware import ServingMiddleware
from labsupport.serving.monitor import PerformanceMonitor
from labsupport.serving.protocol import ChatRequest, CompletionRequest
from labsupport.serving.respond import respond_streaming, respond_whole

logger = logging.getLogger("labsupport.serving")

_QUIET = ("/health", "/ready", "/metrics")  # polled every few seconds: logged only when they fail
_EVENTS = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer"}


def create_app(
    engine: Any,
    *,
    max_waiting: int | None = None,
    api_keys: Sequence[str] = (),
    max_body_bytes: int = 2**20,
    drain_seconds: float = 30.0,
    template: ChatTemplate | None = None,
    monitor: PerformanceMonitor | None = None,
    keys_everywhere: bool = False,
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """A FastAPI app. ``app.state`` has its ``backend``, ``metrics``, ``monitor``, and ``stop`` to drain it.

    Args:
        engine: an `LLMEngine`, or any `labsupport.serving.backend.Backend`.
        max_waiting: requests that may wait in addition to those that run; the next one is answered 429. None: 64.
        api_keys: keys that give access to `/v1/`; none: everybody has access.
        max_body_bytes: larger requests are answered 413.
        drain_seconds: how long running requests may take to finish when the server stops; then they are cancelled.
        template: turns a chat into a prompt; None: the model's own, else chosen by the tokenizer (chat_template.py).
        keys_everywhere: `/health`, `/metrics` and `/docs` need a key too.
        allowed_hosts: names that a ``Host`` header may have (access.py); none: any.
        cors_origins: pages, such as ``https://example.org``, whose scripts may use the API from a browser; none: none.

    Raises:
        ValueError: ``engine`` is neither, a limit is out of range, or a key is empty.
    """
    backend = as_backend(engine, max_waiting)
    for name, value in (("max_body_bytes", max_body_bytes), ("drain_seconds", drain_seconds)):
        if value < 0:
            raise ValueError(f"{name} must be 0 or more; got {value}")
    access = Access(api_keys, keys_everywhere, allowed_hosts)
    life = _Life(backend, drain_seconds)
    app = FastAPI(title="labsupport", version=__version__, lifespan=life.lifespan)
    app.state.backend, app.state.metrics, app.state.stop = backend, Metrics(backend), life.end
    app.state.monitor = PerformanceMonitor() if monitor is None else monitor
    template = template or getattr(backend, "template", None)  # a backend may know its model's own
    app.state.template = chat_template(backend.tokenizer) if template is None else template
    errors.install(app)
    _add_routes(app, backend)

    def after(context: Context, method: str, route: str, status: int, seconds: float) -> None:
        _account(app, context, method, route, status, seconds)

    app.add_middleware(ServingMiddleware, before=life.begin, after=after, access=access, max_body_bytes=max_body_bytes)
    if cors_origins:  # outermost: a browser asks first, and sends no key with that
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )  # fmt: skip
    return app


def _add_routes(app: FastAPI, backend: Backend) -> None:
    created = int(time.time())
    model = Model(id=backend.model_name, created=created, owned_by="labsupport", max_model_len=backend.max_model_len)
    refused: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in (400, 401, 413)}

    @app.post("/v1/completions", responses={200: _EVENTS | {"model": CompletionResponse}, **RESPONSES})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a prompt, or several; as server-sent events if ``stream``."""
        _check_model(body.model, backend)
        context: Context = request.state.context
        inputs = await completion_inputs(body, backend)
        generation = Generation(backend, inputs, context, bool(body.stream))
        answer = CompletionAnswer(context.engine_id, backend, body, inputs)
        return await (respond_streaming if body.stream else respond_whole)(request, generation, answer)

    @app.post("/v1/chat/completions", responses={200: _EVENTS | {"model": ChatResponse}, **RESPONSES})
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; as server-sent events if ``stream``."""
        _check_model(body.model, backend)
        context: Context = request.state.context
        inputs = chat_inputs(body, backend, app.state.template)
        generation = Generation(backend, inputs, context, bool(body.stream))
        answer = ChatAnswer(context.engine_id, backend, body, inputs)
        return await (respond_streaming if body.stream else respond_whole)(request, generation, answer)

    @app.get("/v1/models", response_model=ModelList, responses=refused)
    async def models() -> ModelList:
        """The only model served."""
        return ModelList(data=[model])

    @app.get("/v1/models/{name:path}", response_model=Model, responses={**refused, 404: RESPONSES[404]})
    async def one_model(name: str) -> Model:
        _check_model(name, backend)
        return model

    @app.get("/health", response_model=Status, responses={**refused, 503: {"model": Status}})
    async def health() -> JSONResponse:
        """Liveness: whether the engine's thread is running and making progress. 503: restart this process."""
        return _status(backend, backend.alive(), "alive", "the engine is dead or hangs")

    @app.get("/ready", response_model=Status, responses={**refused, 503: {"model": Status}})
    async def ready() -> JSONResponse:
        """Readiness: whether new requests are accepted. 503: send them elsewhere."""
        return _status(backend, backend.ready(), "ready", "no requests are taken")

    @app.get("/metrics", response_class=Response, responses={**refused, 200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus to scrape."""
        text, content_type = app.state.metrics.exposition()
        return Response(text, headers={"content-type": content_type})


class _Life:
    """Starts the backend once, with the server or with the first request, and stops it with the server."""

    def __init__(self, backend: Backend, drain_seconds: float) -> None:
        self.backend, self.drain_seconds = backend, drain_seconds
        self._running = False
        self._ended = False  # a late request must not start it again
        self._changing = asyncio.Lock()

    async def begin(self) -> None:
        if self._running or self._ended:
            return
        async with self._changing:
            if not self._running:
                await self.backend.start()
                self._running = True

    async def end(self) -> None:
        """Let running requests finish, then cancel them. A second call waits for the first."""
        self._ended = True
        async with self._changing:
            if self._running:
                await self.backend.shutdown(self.drain_seconds)
                self._running = False

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._ended, self._changing = False, asyncio.Lock()
        await self.begin()
        try:
            yield
        finally:
            await self.end()


def _check_model(name: str | None, backend: Backend) -> None:
    if name is not None and name != backend.model_name:
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        message = f"The model {shown!r} does not exist; this server has {backend.model_name!r}."
        raise ApiError(404, message, "model", "model_not_found")


def _status(backend: Backend, good: bool, word: str, otherwise: str) -> JSONResponse:
    stats = backend.stats()
    status = Status(
        status=word if good else otherwise,
        model=backend.model_name,
        num_requests_running=stats.num_requests_running,
        num_requests_waiting=stats.num_requests_waiting,
    )
    return JSONResponse(status.model_dump(), 200 if good else 503)


def _account(app: FastAPI, context: Context, method: str, route: str, status: int, seconds: float) -> None:
    """A request is over: metrics, monitor, one line in the log."""
    app.state.metrics.answered(method, route, status)
    fields: dict[str, Any] = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
    if context.client_gone:
        fields["client_gone"] = True
    seen = context.observation
    if seen is not None:
        app.state.metrics.observe(seen, seconds, context.client_gone)
        app.state.monitor.record(
            seconds if status == 200 else None, seen.time_to_first_token, seen.inter_token, seen.prompt_tokens,
            seen.completion_tokens, error=status >= 500,
        )  # fmt: skip
        first = seen.time_to_first_token
        fields |= {"prompt_tokens": seen.prompt_tokens, "completion_tokens": seen.completion_tokens}
        fields |= {"time_to_first_token": None if first is None else round(first, 6), "streamed": seen.streamed}
        fields["finish_reasons"] = [output.finish_reason for output in seen.finished]
    if route not in _QUIET or status >= 400:
        logger.info("%s %s %d", method, route, status, extra={"fields": fields})
