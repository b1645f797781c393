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
        max_model_len: the most tokens a prompt and its output may have together.
        tokenizer: the model's. The API encodes with it, so that prompts arrive as token ids.
    """

    model_name: str
    max_model_len: int
    tokenizer: Tokenizer

    @property
    def max_in_flight(self) -> int | None:
        """How many requests may be running or waiting at a time; None: no limit."""
        ...

    async def start(self) -> None:
        """Ready to accept requests when it returns. Each `start` is matched by one `shutdown`."""
        ...

    def stream(
        self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool = True
    ) -> AsyncIterator[RequestOutput]:
        """Yield the request's output as it grows; only the last one has ``finished=True``.

        Outputs are cumulative, so a slow reader may be given fewer of them. The first one may come as soon as the
        request is accepted, with no token yet. ``intermediate=False``: only the last is wanted. Closing or cancelling
        the iterator aborts the request.

        Raises (when iterated):
            ValueError: the prompt is empty, too long or holds an unknown token.
            Overloaded: the queue is full.
            Unavailable: it is shutting down, or the engine is dead.
            GenerationFailed: the request was accepted, and something broke.
        """
        ...

    def alive(self) -> bool:
        """Whether the engine is running, and makes progress while there is work. False: restart the process."""
        ...

    def ready(self) -> bool:
        """Whether new requests are accepted. False: send them elsewhere."""
        ...

    def stats(self) -> EngineStats: ...

    async def shutdown(self, drain_seconds: float) -> None:
        """Accept no more requests, give those that run ``drain_seconds`` to finish, then abort what is left."""
        ...


class Overloaded(Exception):
    """The queue is full. ``retry_after``: seconds until there is likely to be room."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(Exception):
    """No requests are accepted: shutting down, not started, or dead."""


class GenerationFailed(Exception):
    """An accepted request was lost to an error inside."""
