"""The requests that a worker has in hand: each runs on the engine, and what it gives is sent to its API server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from labsupport.inference.request import RequestOutput
from labsupport.serving.backend import Backend, GenerationFailed, Overloaded, Unavailable
from labsupport.serving.stack.job import Job
from labsupport.serving.stack.queue import UNREACHABLE, RequestQueue
from labsupport.serving.stack.replies import make_error, make_reply

logger = logging.getLogger("labsupport.serving")

TRIES = 3


@dataclass(eq=False)
class Run:
    """One try of a job, or (``error`` and ``park`` given) only the news that it is given up.

    Attributes:
        alone: this is the last try, for which the worker does nothing else.
        latest, sent: the newest output, and the newest that was sent.
        error: the last reply, if it is not an output.
        park: why the job is given up.
    """

    job: Job
    alone: bool = False
    task: asyncio.Task[None] | None = None
    latest: RequestOutput | None = None
    sent: RequestOutput | None = None
    error: dict[str, Any] | None = None
    park: str = ""

    @property
    def last(self) -> bool:
        return self.error is not None or (self.latest is not None and self.latest.finished)

    @property
    def unsent(self) -> bool:
        if self.last or self.latest is None or not self.job.intermediate:
            return self.last
        return len(self.latest.token_ids) > (0 if self.sent is None else len(self.sent.token_ids))


class Runs:
    """Of the worker called ``name``. ``counts``: what became of requests. ``freed``: set when a run is gone."""

    def __init__(self, queue: RequestQueue, backend: Backend, name: str) -> None:
        self.queue, self.backend, self.name = queue, backend, name
        self.counts = dict.fromkeys(("taken", "claimed", "finished", "cancelled", "lost", "released", "parked"), 0)
        self.freed = asyncio.Event()
        self._runs: dict[str, Run] = {}
        self._something_to_send = asyncio.Event()

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    @property
    def alone(self) -> bool:
        """Whether a last try is being made."""
        return any(run.alone for run in self)

    def start(self, run: Run) -> None:
        before = self._runs.get(run.job.id)
        if before is not None and before.task is not None:
            before.task.cancel()  # its lease expired, and this same worker has claimed it
        self._runs[run.job.id] = run
        if run.error is not None:
            self._something_to_send.set()
        else:
            run.task = asyncio.ensure_future(self._serve(run))

    async def send(self) -> None:
        """Wait for news and send it all at once. If Redis is away it stays news."""
        await self._something_to_send.wait()
        self._something_to_send.clear()
        ready = [(run, run.latest) for run in self if run.unsent]
        try:
            growing = [(run, latest) for run, latest in ready if not run.last and latest is not None]
            if growing:
                await self.queue.emit(
                    [(run.job.server, make_reply(run.job, latest, run.sent)) for run, latest in growing]
                )
                for run, latest in growing:
                    run.sent = latest
            for run, _ in ready:
                if run.last and run.job.id in self._runs:
                    await self._finish(run)
        except UNREACHABLE:
            self._something_to_send.set()
            raise

    async def cancel(self, job_id: str) -> None:
        """Its client has left."""
        run = self._runs.get(job_id)
        if run is not None and not run.last:
            self.drop(run)
            self.counts["cancelled"] += 1
            await self.queue.finish(self.name, run.job, None)

    def drop(self, run: Run) -> None:
        """Stop it, and say nothing to the queue."""
        if run.task is not None:
            run.task.cancel()
        self._forget(run)

    async def give_back(self) -> None:
        """All of them, untried."""
        for run in self:
            if run.task is not None:
                run.task.cancel()
            await self._release(run, count_try=False)

    async def _serve(self, run: Run) -> None:
        job = run.job
        try:
            async with aclosing(
                self.backend.stream(job.id, job.prompt, job.params, job.intermediate)  # type: ignore[type-var]
            ) as outputs:
                async for output in outputs:
                    if output.finish_reason == "abort":
                        raise Unavailable("the engine shut down")
                    run.latest = output
                    if run.unsent:
                        self._something_to_send.set()
        except ValueError as error:
            run.error = make_error(job, "invalid", str(error))
        except (Unavailable, Overloaded) as error:
            logger.warning("%s: gives back request %s (%s)", self.name, job.request_id, error)
            await self._release(run, count_try=False)
        except GenerationFailed as error:
            if job.tries < TRIES:
                await self._release(run, count_try=True)
            else:
                run.error, run.park = make_error(job, "failed", str(error)), str(error)
        except Exception as error:
            logger.exception("%s: request %s", self.name, job.request_id)
            run.error, run.park = make_error(job, "failed", "the worker failed"), repr(error)
        self._something_to_send.set()

    async def _finish(self, run: Run) -> None:
        reply = run.error
        if reply is None and run.latest is not None:
            reply = make_reply(run.job, run.latest, run.sent)
        own = await self.queue.finish(self.name, run.job, reply, run.park)
        self.counts["lost" if not own else "parked" if run.park else "finished"] += 1
        if own and run.park:
            logger.error("%s: request %s is parked: %s", self.name, run.job.request_id, run.park)
        self._forget(run)

    async def _release(self, run: Run, count_try: bool) -> None:
        self._forget(run)
        self.counts["released"] += 1
        with suppress(*UNREACHABLE):  # then its lease expires
            await self.queue.release(self.name, run.job, count_try)

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.job.id) is run:
            del self._runs[run.job.id]
        self.freed.set()
