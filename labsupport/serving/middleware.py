"""Around every request: its id, size limit, API key, and log line; and no stack trace ever reaches a client.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` hides the client's disconnect from what it wraps.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labsupport.serving import logs
from labsupport.serving.access import Access
from labsupport.serving.context import Context
from labsupport.serving.errors import ClientGone, error_body, error_response

logger = logging.getLogger("labsupport.serving")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # visible ASCII: it goes into a header and into logs
CLIENT_GONE = 499  # nginx's status for it; appears only in logs


class ServingMiddleware:
    """Wraps the app.

    Args:
        before: awaited before each request, in case the server has not run the app's lifespan.
        after: called when a request is over, with its context, method, route, status, and seconds.
        access: who may come in.
        max_body_bytes: larger bodies are refused, unread if their Content-Length says so.
        max_buffered_bytes: of all bodies that are being read; more are refused until there is room.
    """

    def __init__(
        self,
        app: ASGIApp,
        before: Callable[[], Any],
        after: Callable[[Context, str, str, int, float], None],
        access: Access,
        max_body_bytes: int,
        max_buffered_bytes: int = 2**25,
    ) -> None:
        self.app, self.before, self.after, self.access = app, before, after, access
        self.max_body_bytes, self.max_buffered_bytes = max_body_bytes, max(max_buffered_bytes, max_body_bytes)
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        context = Context(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, time.monotonic())
        scope.setdefault("state", {})["context"] = context
        status, method = 0, scope["method"]

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = context.request_id
            elif method == "HEAD":  # answered as GET is, without the body
                message = {**message, "body": b""}
            await send(message)

        token = logs.request_id.set(context.request_id)
        try:
            await self.before()
            if method == "HEAD":
                scope = {**scope, "method": "GET"}
            refusal = self._refusal(scope, headers)
            if refusal is None:
                body = await self._read(receive)
                if isinstance(body, JSONResponse):
                    refusal = body
                else:
                    await self.app(scope, _replay(body, receive), send_with_id)
            if refusal is not None:
                await refusal(scope, receive, send_with_id)
        except ClientGone:
            status = status or CLIENT_GONE
            context.client_gone = True
        except Exception as error:
            answer = error_response(error)  # logs the stack trace: the client never sees it
            if not status:
                await answer(scope, receive, send_with_id)
            status = 500
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # the template, as there is no end of paths
            self.after(context, method, route, status, time.monotonic() - context.arrival)
            logs.request_id.reset(token)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        refusal = self.access.refusal(scope, headers)
        if refusal is not None:
            return refusal
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return JSONResponse(error_body(400, "Content-Length must be a number"), 400, {"Connection": "close"})
        return self._too_large() if len(length) > 18 or int(length) > self.max_body_bytes else None

    def _too_large(self) -> JSONResponse:
        message = f"The body must be at most {self.max_body_bytes:,} bytes"
        return JSONResponse(error_body(413, message, None, "body_too_large"), 413, {"Connection": "close"})

    async def _read(self, receive: Receive) -> bytes | JSONResponse:
        """The body; a refusal if it is too large, whether or not its length was announced, or too many are read."""
        chunks: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                self._buffered += len(chunks[-1])
                if size > self.max_body_bytes:
                    return self._too_large()
                if self._buffered > self.max_buffered_bytes:
                    body = error_body(503, "Too many large requests at a time", None, "too_much_to_read")
                    return JSONResponse(body, 503, {"Connection": "close", "Retry-After": "1"})
                if not message.get("more_body", False):
                    return b"".join(chunks)
        finally:
            self._buffered -= size


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, then whatever follows: the disconnect."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
