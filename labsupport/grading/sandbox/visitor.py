"""Outside: talks to the programs that a sandbox hosts, and writes down what they say.

The inputs of these checks never enter the sandbox, and the record never leaves this process. A submission can send
whatever it likes; it cannot take back what it has said, nor say it at another time.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

from labsupport.checks.channel import Channel, Closed, Malformed, Message
from labsupport.checks.plain import Plain, encode

Visit: TypeAlias = Callable[[Channel, Message], Plain]  # `VisitedCheck.receive` with its inputs


class Visitor:
    """Makes the ``visits`` (index of a check -> visit) as the code inside asks for them, each once.

    ``theirs`` is the socket for the inside; ``values`` has the encoded results of the visits that came to an end.
    """

    def __init__(self, visits: Mapping[int, Visit]) -> None:
        self.visits = dict(visits)
        self.values: dict[int, bytes] = {}
        ours, self.theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._thread = threading.Thread(target=self._visit_all, name="visitor", daemon=True)

    def begin(self) -> None:
        """The other end has been handed over."""
        self.theirs.close()
        self._thread.start()

    def end(self) -> None:
        """The run is over: a visit that still goes on has no result."""
        self._channel.close()
        if self._thread.is_alive():
            self._thread.join()

    def _visit_all(self) -> None:
        left = dict(self.visits)
        try:
            while left and (hello := self._channel.receive()) is not None:
                if "check" not in hello:
                    continue  # of the conversation before
                index = hello["check"]
                if type(index) is not int or index not in left:
                    self._channel.fail("no such check")
                try:
                    self.values[index] = encode(left.pop(index)(self._channel, hello))
                except Malformed:
                    self.values[index] = encode({"malformed": True})
                    raise
        except Closed:
            return
