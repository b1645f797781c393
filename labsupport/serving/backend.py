"""What the API needs of whatever generates: an engine in this process, workers behind a queue, or vLLM.

backend = as_backend(LLMEngine(load_lm("tiny")))
await backend.start()
async for output in backend.stream("request-1", "The with statement", SamplingParams(max_tokens=8)):
    print(output.text)
await backend.shutdown(drain_seconds=5)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from labsupport.inference.request import RequestOutput
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.lm.tokenizer import Tokenizer


class Backend(Protocol):
    """Called from an event loop; no method blocks it.

    Attributes:
        model_name: what clients call the model.
        max_model_len: tokens of a prompt and its output together.
        tokenizer: the model's. The API encodes with it, so that prompts arrive as token ids.
        max_in_flight: requests accepted at a time, running and waiting; None: as many as come.
    """

    model_name: str
    max_model_len: int
    tokenizer: Tokenizer
    max_in_flight: int | None

    async def start(self) -> None:
        """Ready to take requests when it returns. Each `start` is matched by one `shutdown`."""
        ...

    def stream(
        self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool = True
    ) -> AsyncIterator[RequestOutput]:
        """The request as it stands, again and again; the last output has ``finished=True``, and only that.

        Outputs are cumulative, so a slow reader may be given fewer of them. The first one may come as soon as the
        request is accepted, with no token yet. ``intermediate=False``: only the last is wanted. Closing or cancelling
        the iterator aborts the request.

        Raises (when iterated):
            ValueError: the prompt is empty, too long or holds an unknown token.
            Overloaded: the queue is full.
            Unavailable: it is shutting down, or what generates is dead.
            GenerationFailed: the request was accepted, and something broke.
        """
        ...

    def alive(self) -> bool:
        """Whether what generates lives, and gets on while there is work. False: restart the process."""
        ...

    def ready(self) -> bool:
        """Whether new requests are taken. False: send them elsewhere."""
        ...

    def stats(self) -> EngineStats: ...

    async def shutdown(self, drain_seconds: float) -> None:
        """Take no more requests, let those that run finish for so long, then abort what is left."""
        ...


class Overloaded(Exception):
    """The queue is full. ``retry_after``: seconds after which a place is likely to be free."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(Exception):
    """No requests are taken: shutting down, not started, or dead."""


class GenerationFailed(Exception):
    """An accepted request was lost to an error inside."""
