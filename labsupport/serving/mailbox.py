"""One request's newest output, on its way from the engine's thread to a reader in an event loop."""

from __future__ import annotations

import asyncio

from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams


class Mailbox:
    """Written by `hand_over` and read by `next`, both in the reader's loop. Only the newest output is kept."""

    def __init__(self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool) -> None:
        self.request_id, self.prompt, self.params, self.intermediate = request_id, prompt, params, intermediate
        self.loop = asyncio.get_running_loop()
        self.done = False
        self._latest: RequestOutput | Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> RequestOutput:
        """The newest output that was not read yet. One reader at a time."""
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


def hand_over(deliveries: list[Delivery]) -> None:
    for stream, result in deliveries:
        stream.put(result)


def accepted(stream: Mailbox) -> RequestOutput:
    tokens = stream.prompt if isinstance(stream.prompt, list) else []
    logprobs: list[dict[int, float]] | None = None if stream.params.logprobs is None else []
    return RequestOutput(stream.request_id, tokens, "", [], None, logprobs, 0, RequestTimes())
