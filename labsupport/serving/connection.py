"""A connection that a hostile client cannot use to take the server's memory, time or sockets.

uvicorn parses with httptools, which has no limits: a header of 60 MB is copied again with each piece that arrives, and
a request that never ends keeps its connection for ever. Here

- bytes that lead nowhere are counted (a header, a trailer, or the length of a chunk that goes on and on): 431;
- each phase has a deadline that data does not extend: waiting for a request, its head, its body, a client that does not
  read its answer (slowloris and its relatives): 408, or the connection is cut;
- there is a largest number of connections. A new one takes the place of the one that has waited longest for its
  request; if all are being served, it is answered 503.

Errors have OpenAI's shape, as all others have.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from labsupport.serving.errors import error_body

_MAX_PIPELINED = 16  # requests sent before the answer to an earlier one
_LINGER_SECONDS = 2.0  # for which what a refused client still sends is read and thrown away
_CHECK_SECONDS = 1.0  # between looks at a body that we paused ourselves


@dataclass(frozen=True)
class Limits:
    """What one client may take.

    Attributes:
        head_bytes: of a request line with its headers, or of a trailer.
        headers: their number.
        head_seconds: from the connection, or the request's first byte, to the end of its headers.
        body_seconds: from there to the end of the body.
        idle_seconds: between two requests on one connection.
        write_seconds: how long a client may read nothing while its answer waits to be sent.
        connections: at the same time.
    """

    head_bytes: int = 2**16
    headers: int = 100
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 30.0
    write_seconds: float = 30.0
    connections: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")


def guarded(limits: Limits) -> type[GuardedConnection]:
    """The class of connections with these limits, for ``uvicorn.Config(http=...)``."""
    return type("GuardedConnection", (GuardedConnection,), {"limits": limits})


class GuardedConnection(HttpToolsProtocol):
    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._phase = "head"
        self._leading_nowhere = 0  # bytes since the parser last finished something
        self._refused = False
        self._since = self.loop.time()

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._enter("head", self.limits.head_seconds)
        if len(self.connections) > self.limits.connections and not self._replace_a_waiting_one():
            self._refuse(503, "Too many connections: try again in a moment", "too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._write_deadline):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._leading_nowhere += len(data)
        super().data_received(data)
        if self._leading_nowhere > self.limits.head_bytes:
            self._too_much_head()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self._refuse(400, msg, "invalid_http")

    # Parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._phase == "idle":
            self._unset_keepalive_if_required()
            self._enter("head", self.limits.head_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refused:
            return
        if self._phase == "body":  # a trailer: nobody reads those
            return
        super().on_header(name, value)
        if len(self.headers) > self.limits.headers:
            self._too_much_head()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head_bytes:
            self._too_much_head()
        if self._refused:
            return
        self._leading_nowhere = 0
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._refuse(429, f"At most {_MAX_PIPELINED} requests may wait on one connection", "too_many_requests")
            return
        self._enter("body", self.limits.body_seconds)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._leading_nowhere = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._leading_nowhere = 0
        if self._refused:
            return
        super().on_message_complete()
        if self._phase == "body":
            self._enter("answer", None)

    # Answers

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # ours is not extended by data that is no request
        if self.cycle.response_complete:
            self._enter("idle", self.limits.idle_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self.limits.write_seconds, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_ended()

    # Helpers

    def _enter(self, phase: str, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._phase, self._since = phase, self.loop.time()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self._phase == "body" and self.flow.read_paused:  # we do not read: the client is not to blame
            self._deadline = self.loop.call_later(_CHECK_SECONDS, self._late)
        elif self._refused or self.transport.is_closing() or self._phase == "idle":
            self._abort()
        elif self._phase == "head" and not self._leading_nowhere and self.scope is None:
            self.transport.close()  # it sent nothing: there is nothing to answer
        else:
            seconds = self.limits.head_seconds if self._phase == "head" else self.limits.body_seconds
            self._refuse(408, f"The request's {self._phase} did not arrive within {seconds:g} s", "request_timeout")

    def _write_ended(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _replace_a_waiting_one(self) -> bool:
        waiting = [
            each
            for each in self.connections
            if isinstance(each, GuardedConnection) and each is not self and each._phase in ("head", "idle")
        ]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda each: each._since)
        self.connections.discard(oldest)
        oldest._abort()
        return True

    def _too_much_head(self) -> None:
        limits = self.limits
        message = f"Headers must be at most {limits.head_bytes:,} bytes and {limits.headers} in number"
        self._refuse(431, message, "headers_too_large")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer, unless an answer has begun, and close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        cycle = self.cycle
        if not self.pipeline and (cycle is None or cycle.response_complete or not cycle.response_started):
            body = json.dumps(error_body(status, message, None, code)).encode()
            self.transport.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        # closing with data unread would reset the connection, and many clients would never see the answer
        self.transport.write_eof()
        self._enter(self._phase, _LINGER_SECONDS)

    def _abort(self) -> None:
        """Now, whatever waits to be sent."""
        self._refused = True
        self.transport.abort()
