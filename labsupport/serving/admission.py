"""Admission: which requests are accepted and not finished, and how many there may be.

Event loops put requests in and take them out; the engine's thread looks after each step. One condition variable guards
all of it, and is never held while the engine computes, so nobody waits for a step.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from labsupport.inference.request import RequestOutput
from labsupport.serving.backend import Overloaded, Unavailable
from labsupport.serving.mailbox import Delivery, Mailbox

NOT_RUNNING, SHUTTING_DOWN = "the engine is not running", "the server is shutting down"


class Admission:
    """The unfinished requests of an engine's thread. Closed until its owner sets ``refusal`` to None.

    Args:
        max_num_seqs: requests that the engine runs at a time.
        max_in_flight: how many requests may be running or waiting at a time; None: no limit.

    Attributes:
        refusal: why no requests are accepted; None: they are.
        streams: accepted and not finished, by request id.
        arrived, left: requests that the engine has yet to hear about.
    """

    def __init__(self, max_num_seqs: int, max_in_flight: int | None) -> None:
        self.max_num_seqs, self.max_in_flight = max_num_seqs, max_in_flight
        self.changed = threading.Condition()
        self.refusal: str | None = NOT_RUNNING
        self.streams: dict[str, Mailbox] = {}
        self.arrived: list[Mailbox] = []
        self.left: list[Mailbox] = []
        self._mean_seconds = 1.0  # of a request, moving average

    def accept(self, stream: Mailbox) -> None:
        """
        Raises:
            Unavailable: no requests are accepted.
            Overloaded: there are ``max_in_flight`` already.
            ValueError: another unfinished request has the same id.
        """
        with self.changed:
            if self.refusal is not None:
                raise Unavailable(self.refusal)
            if self.max_in_flight is not None and len(self.streams) >= self.max_in_flight:
                raise Overloaded(
                    f"{len(self.streams)} requests are running or waiting, which is the limit", self._retry_after()
                )
            if stream.request_id in self.streams:
                raise ValueError(f"request_id must be new; {stream.request_id!r} is not finished")
            self.streams[stream.request_id] = stream
            self.arrived.append(stream)
            self.changed.notify_all()

    def leave(self, stream: Mailbox) -> None:
        """The reader of this request has gone; nothing happens if it is finished."""
        if stream.done:
            return
        with self.changed:
            if self.streams.get(stream.request_id) is stream:
                self.left.append(stream)
                self.changed.notify_all()

    def news(self) -> tuple[list[Mailbox], list[Mailbox]]:
        """The requests that arrived and those that left since the last call."""
        with self.changed:
            arrived, self.arrived = self.arrived, []
            left, self.left = self.left, []
        return arrived, left

    def forget(self, stream: Mailbox) -> None:
        """The request left, and the engine has aborted it."""
        with self.changed:
            del self.streams[stream.request_id]
            self.changed.notify_all()

    def finish(self, last: Sequence[Delivery]) -> None:
        """Remove finished requests, given with their last results."""
        if not last:
            return
        with self.changed:
            for stream, result in last:
                self.streams.pop(stream.request_id, None)
                if isinstance(result, RequestOutput):
                    self._mean_seconds += 0.1 * (time.monotonic() - result.times.arrival - self._mean_seconds)
            self.changed.notify_all()

    def close(self, why: str) -> list[Mailbox]:
        """Accept no more requests. Returns the unfinished ones."""
        with self.changed:
            self.refusal = why
            return list(self.streams.values())

    def known_to_engine(self) -> list[Mailbox]:
        """Without those that have only just arrived."""
        with self.changed:
            return [stream for stream in self.streams.values() if stream not in self.arrived]

    def _retry_after(self) -> float:
        """Seconds until one of the running requests is likely to be finished."""
        return float(min(60, max(1, math.ceil(self._mean_seconds / self.max_num_seqs))))
