"""Around every request: its id, its size, its key, its log line, and no stack trace for anybody.

Plain ASGI, since Starlette's `BaseHTTPMiddleware` hides a client's disconnect from what is inside.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labsupport.serving import logs
from labsupport.serving.context import Context
from labsupport.serving.errors import ClientGone, error_body, error_response

logger = logging.getLogger("labsupport.serving")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # visible ASCII: it goes into a header and into logs
CLIENT_GONE = 499  # nginx's number for it; seen in logs only


class ServingMiddleware:
    """
    Args:
        before: awaited before the first request, when the server has not run the app's lifespan.
        after: told of each request when it is over.
        keys: accepted API keys; none: everybody may come. Only paths under ``/v1/`` ask for one.
        max_body_bytes: larger bodies are refused, before they are read where the header tells.
    """

    def __init__(
        self,
        app: ASGIApp,
        before: Callable[[], Any],
        after: Callable[[Context, str, str, int, float], None],
        keys: Sequence[str],
        max_body_bytes: int,
    ) -> None:
        self.app, self.before, self.after, self.max_body_bytes = app, before, after, max_body_bytes
        self.digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        context = Context(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, time.monotonic())
        scope.setdefault("state", {})["context"] = context
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = context.request_id
            await send(message)

        token = logs.request_id.set(context.request_id)
        try:
            await self.before()
            refusal = self._refusal(scope, headers)
            if refusal is None:
                body = await self._read(receive)
                if body is None:
                    refusal = self._too_large()
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
            route = getattr(scope.get("route"), "path", "unknown")  # the template: paths would be without number
            self.after(context, scope["method"], route, status, time.monotonic() - context.arrival)
            logs.request_id.reset(token)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if self.digests and scope["path"].startswith("/v1/") and not self._allowed(headers.get("authorization", "")):
            message = "The API key is missing or wrong: send `Authorization: Bearer KEY`."
            body = error_body(401, message, None, "invalid_api_key")
            return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return JSONResponse(error_body(400, "Content-Length must be a number"), 400, {"Connection": "close"})
        return self._too_large() if len(length) > 18 or int(length) > self.max_body_bytes else None

    def _too_large(self) -> JSONResponse:
        message = f"The body must be at most {self.max_body_bytes:,} bytes"
        return JSONResponse(error_body(413, message, None, "body_too_large"), 413, {"Connection": "close"})

    def _allowed(self, authorization: str) -> bool:
        """In the same time whatever was sent: digests have one length, and every key is looked at."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        return any(matches) and scheme.lower() == "bearer"

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None if it is too large, however it was sent."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.max_body_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes: the disconnect."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
