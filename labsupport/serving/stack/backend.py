"""The API server's side of the queue: a `Backend` without an engine, and without weights.

A request goes into Redis and its outputs come back in the server's own stream, which one task reads for all requests.
While Redis is gone, requests wait; those that were accepted are still there when it is back (queue.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import fields, replace
from typing import Any

from labsupport.inference.request import RequestOutput
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.lm.tokenizer import Tokenizer
from labsupport.serving.backend import Overloaded, Unavailable
from labsupport.serving.stack.job import Job
from labsupport.serving.stack.queue import UNREACHABLE, RequestQueue, end_tasks
from labsupport.serving.stack.replies import ReplyStream

logger = logging.getLogger("labsupport.serving")

_REPLIES_KEPT = 600.0  # seconds that Redis may be gone, or this process stopped, without losing a reply
_BEAT_SECONDS = 1.0
_SILENT_SECONDS = 5.0  # without an answer from Redis, after which it is not ready


class RedisBackend:
    """A `Backend` over a `RequestQueue`.

    Args:
        queue: where the workers listen.
        tokenizer, model_name, max_model_len: of the model that the workers run.
        max_in_flight: how many requests of all API servers together may be unfinished; the next is `Overloaded`.
    """

    def __init__(
        self, queue: RequestQueue, tokenizer: Tokenizer, model_name: str, max_model_len: int, max_in_flight: int = 96
    ) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1; got {max_in_flight}")
        self.queue, self.tokenizer, self.model_name, self.max_model_len = queue, tokenizer, model_name, max_model_len
        self.max_in_flight: int | None = max_in_flight
        self.server = uuid.uuid4().hex[:12]
        self._streams: dict[str, ReplyStream] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._draining = False
        self._heard = float("-inf")  # when Redis last answered
        self._workers: dict[str, dict[str, Any]] = {}
        self._length = 0

    async def start(self) -> None:
        """Redis may come up later; until then this backend is not ready."""
        self._draining = False
        self._tasks = [asyncio.ensure_future(self._read_replies()), asyncio.ensure_future(self._beat())]

    async def stream(
        self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool = True
    ) -> AsyncIterator[RequestOutput]:
        tokens = self._checked(prompt, params)
        if self._draining or not self._tasks:
            raise Unavailable("the server is shutting down" if self._draining else "the server has not started")
        if params.temperature > 0 and params.seed is None:
            params = replace(params, seed=secrets.randbits(63))  # a second try must draw the same
        job = Job(uuid.uuid4().hex, request_id, self.server, tokens, params, intermediate)
        stream = self._streams[job.id] = ReplyStream(job)
        try:
            await self._submit(job)
            yield stream.output()
            while True:
                output = await stream.next()
                yield output
                if output.finished:
                    return
        finally:
            del self._streams[job.id]
            if not stream.done:
                self._later(self._cancel(job.id))

    def alive(self) -> bool:
        """A restart of this process could not bring back Redis, so its absence does not count."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def ready(self) -> bool:
        heard = time.monotonic() - self._heard < _SILENT_SECONDS
        return self.alive() and not self._draining and heard and bool(self._workers)

    def stats(self) -> EngineStats:
        """Of all workers together, as of a second ago. Each worker also serves its own `/metrics`."""
        each_worker = [EngineStats(**facts["stats"]) for facts in self._workers.values()]
        sums = {
            each.name: sum(getattr(stats, each.name) for stats in each_worker)
            for each in fields(EngineStats)
            if each.name != "finished"
        }
        finished: dict[str, int] = {}
        for stats in each_worker:
            for reason, count in stats.finished.items():
                finished[reason] = finished.get(reason, 0) + count
        sums["kv_cache_usage_perc"] /= max(1, len(each_worker))
        sums["num_requests_waiting"] = max(0, self._length - sums["num_requests_running"])
        return EngineStats(**sums, finished=finished)

    async def shutdown(self, drain_seconds: float) -> None:
        self._draining = True
        deadline = time.monotonic() + drain_seconds
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for stream in list(self._streams.values()):
            stream.end()
            self._later(self._cancel(stream.job.id))
        await asyncio.sleep(0)
        if self._background:
            await asyncio.wait(self._background, timeout=5)
        await end_tasks(self._tasks)
        self._tasks = []
        await self.queue.close()

    # Helpers

    def _checked(self, prompt: str | list[int], params: SamplingParams) -> list[int]:
        """The prompt's tokens. What every worker would refuse is refused here."""
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise ValueError("prompt must hold at least one token; got none")
        if min(tokens) < 0 or max(tokens) >= self.tokenizer.vocab_size:
            raise ValueError(
                f"prompt must hold tokens of 0..{self.tokenizer.vocab_size - 1}; got values from {min(tokens)} to "
                f"{max(tokens)}"
            )
        if len(tokens) + params.max_tokens > self.max_model_len:
            raise ValueError(
                f"prompt and max_tokens must together be at most max_model_len = {self.max_model_len} tokens; got "
                f"{len(tokens)} and {params.max_tokens}"
            )
        return tokens

    async def _submit(self, job: Job) -> None:
        try:
            accepted = await self.queue.submit(job, self.max_in_flight or 0)
        except UNREACHABLE as error:
            raise Unavailable("the queue cannot be reached") from error
        if not accepted:
            self._streams[job.id].done = True  # nothing to cancel
            raise Overloaded(f"{self.max_in_flight} requests are running or waiting, which is the limit")

    async def _cancel(self, job_id: str) -> None:
        try:
            await self.queue.cancel(job_id)
        except UNREACHABLE:
            logger.warning("a request could not be cancelled: the queue cannot be reached")

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what a cancelled coroutine cannot wait for."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _read_replies(self) -> None:
        after, forgotten = "0", 0.0
        while True:
            try:
                for entry, reply in await self.queue.read_replies(self.server, after):
                    after = entry
                    stream = self._streams.get(reply.get("id", ""))
                    if stream is not None:
                        stream.put(reply)
                if time.monotonic() - forgotten > _BEAT_SECONDS and after != "0":
                    await self.queue.forget_replies(self.server, after)
                    forgotten = time.monotonic()
            except UNREACHABLE as error:
                logger.warning("replies wait: the queue cannot be reached (%s)", error)
                await asyncio.sleep(0.2)

    async def _beat(self) -> None:
        while True:
            try:
                await self.queue.register_server(self.server, _REPLIES_KEPT)
                self._workers, self._length = await self.queue.workers(), await self.queue.length()
                self._heard = time.monotonic()
            except UNREACHABLE as error:
                logger.warning("the queue cannot be reached (%s)", error)
            await asyncio.sleep(_BEAT_SECONDS)
