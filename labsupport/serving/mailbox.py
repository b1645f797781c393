"""The newest output of a request, on its way from the engine's thread to a reader in an event loop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams


class Mailbox:
    """Filled by `deliver` and read by `next`, both in the reader's event loop. Only the newest output is kept."""

    def __init__(self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool) -> None:
        self.request_id, self.prompt, self.params, self.intermediate = request_id, prompt, params, intermediate
        self.loop = asyncio.get_running_loop()
        self.done = False
        self._latest: RequestOutput | Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> RequestOutput:
        """Wait for an output that was not read yet. One reader at a time."""
        while self._latest is None:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        latest, self._latest = self._latest, None
        if isinstance(latest, Exception):
            raise latest
        return latest

    def put(self, result: RequestOutput | Exception) -> None:
        self._latest = result
        if isinstance(result, Exception) or result.finished:
            self.done = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


Delivery = tuple[Mailbox, RequestOutput | Exception]


def is_last(delivery: Delivery) -> bool:
    _, result = delivery
    return isinstance(result, Exception) or result.finished


def deliver(deliveries: Iterable[Delivery]) -> list[Mailbox]:
    """From another thread: to each event loop in one call, whatever the number of requests.

    Returns:
        Mailboxes whose loop is closed: their readers are gone.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        stream = delivery[0]
        if stream.intermediate or is_last(delivery):
            by_loop[stream.loop].append(delivery)
    unread = []
    for loop, part in by_loop.items():
        try:
            loop.call_soon_threadsafe(_hand_over, part)
        except RuntimeError:
            unread += [stream for stream, _ in part]
    return unread


def accepted(stream: Mailbox) -> RequestOutput:
    """The first output, which has no token yet."""
    tokens = stream.prompt if isinstance(stream.prompt, list) else []
    logprobs: list[dict[int, float]] | None = None if stream.params.logprobs is None else []
    return RequestOutput(stream.request_id, tokens, "", [], None, logprobs, 0, RequestTimes())


def _hand_over(deliveries: list[Delivery]) -> None:
    for stream, result in deliveries:
        stream.put(result)
