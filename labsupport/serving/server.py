"""Running an app with uvicorn, and ending it cleanly.

On SIGTERM or Ctrl-C the server stops listening, gives running requests time to finish, cancels the rest, stops the
engine, and ends with status 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from labsupport.serving.connection import Limits, guarded

_OTHER_FILES = 256  # than connections, that a server has open
_LAST_SECONDS = 5  # to write the answers that draining leaves


def run(
    app: FastAPI,
    host: str,
    port: int,
    drain_seconds: float = 30.0,
    listening: Callable[[str], object] = print,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> None:
    """Serve until told to stop. ``listening`` is called with the address once connections are accepted.

    ``limits``: what one client may take (connection.py).

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """
    listener = listen(host, port)
    _allow_sockets(limits.connections)
    config = uvicorn.Config(
        app, http=guarded(limits), ws="none", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=round(drain_seconds) + _LAST_SECONDS, backlog=1024,
    )  # fmt: skip
    address = listener.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    server = _Server(config, app, lambda: listening(f"http://{shown}:{address[1]}"))
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket before anything slow begins, so a port that is taken is reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def _allow_sockets(connections: int) -> None:
    """Raise this process's own limit of open files, if it is lower than what the connections need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, started: Callable[[], object]) -> None:
        super().__init__(config)
        self._app, self._tell_started = app, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the engine while uvicorn waits for its connections, so a cancelled request can still tell its client.

        On its own, uvicorn would cancel the handlers first and cut the connections.
        """
        draining = asyncio.ensure_future(self._app.state.stop())
        try:
            await super().shutdown(sockets)
        finally:
            for connection in list(self.server_state.connections):  # of clients that do not read
                connection.transport.abort()
            if self.force_exit:
                draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's own, which however ends by raising the handled signal again and so kills the process."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self.handle_exit) for each in handled}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
