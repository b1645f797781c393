"""JSON messages between two processes, or two threads of one: the pipe between a check and the code that it checks.

One message is one line. Both ends read data that they do not trust: a line that is no JSON object, or is too long, ends
the conversation. Reading JSON runs no code.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from typing import Any

LINE_BYTES = 4 << 20
ALL_BYTES = 128 << 20  # received over one channel

Message = dict[str, Any]


class Closed(Exception):
    """The other end is gone."""


class Malformed(Closed):
    """What came is no message. The channel is closed."""


class Channel:
    """One end of a stream socket. `send` may be called from any thread, `receive` from one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._lines: list[bytes] = []  # complete, the next one last
        self._rest = bytearray()
        self._received = 0
        self._retired = False

    def send(self, message: Message) -> None:
        """Raises `Closed` if nobody reads any more."""
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._sending:
                if self._retired:
                    raise Closed("this conversation is over")
                self._connection.sendall(data)
        except (OSError, ValueError) as error:  # ValueError: the socket object was closed
            raise Closed(str(error)) from None

    def receive(self, seconds: float | None = None) -> Message | None:
        """The next message; None if there is none within ``seconds``.

        Raises:
            Closed: there will be no more.
        """
        while not self._lines:
            try:
                if seconds is not None and not select.select([self._connection], [], [], seconds)[0]:
                    return None
                data = self._connection.recv(1 << 16)
            except (OSError, ValueError) as error:
                raise Closed(str(error)) from None
            if not data:
                raise Closed("the other end was closed")
            self._received += len(data)
            self._rest += data
            if b"\n" in data:
                *lines, rest = self._rest.split(b"\n")
                self._lines, self._rest = [bytes(line) for line in reversed(lines)], bytearray(rest)
            if self._received > ALL_BYTES or len(self._rest) > LINE_BYTES:
                self.fail("too much was sent")
        try:
            message = json.loads(self._lines.pop())
        except (ValueError, RecursionError):
            self.fail("not JSON")
        if not isinstance(message, dict):
            self.fail("not an object")
        return message

    def fail(self, why: str) -> None:
        """Close the channel, since the other end does not keep to the protocol."""
        self.close()
        raise Malformed(why)

    def retire(self) -> None:
        """Let nothing more be sent through this object. The connection stays open, for the next conversation."""
        with self._sending:
            self._retired = True

    def close(self) -> None:
        """End the conversation for both ends; a thread that waits in `receive` or `send` gets `Closed`."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def channels() -> tuple[Channel, Channel]:
    """Both ends of a new channel within one process."""
    ours, theirs = socket.socketpair()
    return Channel(ours), Channel(theirs)
