"""Server-sent events: ``data: <json>`` and an empty line each; OpenAI's streams end in ``data: [DONE]``."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from labsupport.serving.disconnect import until_disconnect

DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends what the generator yields as it comes; closes the generator when the client goes.

    A write waits while the connection is full (back-pressure). Meanwhile nothing piles up, since the backend keeps only
    the newest output of each request.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        # X-Accel-Buffering: otherwise nginx would collect events into blocks
        super().__init__(None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self.events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for each in self.events:
                await send({"type": "http.response.body", "body": each, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: Mapping[str, Any]) -> bytes:
    """JSON holds no bare newline, so one line of data is always enough."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
