"""An engine worker: takes requests from the queue, runs them on its engine, sends back what comes.

It may be killed at any moment: what it had taken is on a lease, and another worker finishes it. It may also stand
still, lose its leases and come back: then it drops what is no longer its own. On SIGTERM it finishes what it has, for
a while, and gives back the rest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from typing import Any

from labsupport.inference.request import RequestOutput
from labsupport.serving.backend import Backend, GenerationFailed, Overloaded, Unavailable
from labsupport.serving.stack.queue import UNREACHABLE, Claimed, Job, RequestQueue, end_tasks
from labsupport.serving.stack.replies import make_error, make_reply

logger = logging.getLogger("labsupport.serving")

TRIES = 3


@dataclass(eq=False)
class _Running:
    job: Job
    task: asyncio.Task[None] | None = None
    latest: RequestOutput | None = None
    sent: RequestOutput | None = None
    error: dict[str, Any] | None = None  # the last reply, if it is no output
    park: str = ""  # why it is given up

    @property
    def last(self) -> bool:
        return self.error is not None or (self.latest is not None and self.latest.finished)

    @property
    def unsent(self) -> bool:
        if self.last or self.latest is None or not self.job.intermediate:
            return self.last
        return len(self.latest.token_ids) > (0 if self.sent is None else len(self.sent.token_ids))


class Worker:
    """Args:
    queue, backend: where requests come from, and what runs them. `run` starts the backend, and shuts it down.
    name: no other worker that lives has it.
    capacity: requests that it has at a time; as many as the engine runs.
    lease_seconds: how long a request waits for a worker that was killed. It must be longer than a worker may stand
        still: a lease that runs out though its worker lives costs the work twice.
    """

    def __init__(
        self, queue: RequestQueue, backend: Backend, name: str, capacity: int, lease_seconds: float = 10.0
    ) -> None:
        if capacity < 1 or lease_seconds <= 0:
            raise ValueError(f"capacity and lease_seconds must be positive; got {capacity} and {lease_seconds}")
        self.queue, self.backend, self.name, self.capacity = queue, backend, name, capacity
        self.lease_seconds = lease_seconds
        self.counts = dict.fromkeys(("taken", "claimed", "finished", "cancelled", "lost", "released", "parked"), 0)
        self._running: dict[str, _Running] = {}
        self._something_to_send, self._changed = asyncio.Event(), asyncio.Event()
        self._stopping = asyncio.Event()
        self._alone = False  # a last try is being made
        self._suspects = 0
        self._renewed = self._claims_from = 0.0
        self._heard = "0"  # the last cancellation

    def stop(self) -> None:
        """Take no more requests, and let `run` end when those that run are finished."""
        self._stopping.set()
        self._changed.set()

    async def run(self, drain_seconds: float = 30.0) -> None:
        """Until `stop`, and then as long as it takes, but not longer than so many seconds."""
        await self.backend.start()
        tasks = [
            asyncio.ensure_future(self._forever(each))
            for each in (self._take, self._send, self._renew, self._hear_cancellations)
        ]
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            deadline = time.monotonic() + drain_seconds
            while self._running and time.monotonic() < deadline and not any(task.done() for task in tasks):
                await asyncio.sleep(0.02)
            await self._give_back()
        finally:
            await end_tasks([*tasks, stopping])
            await self.backend.shutdown(0)
            await self.queue.close()
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _forever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Again and again, whether Redis is there or not."""
        opened = False
        while True:
            try:
                if not opened:
                    await self.queue.open()
                    opened = True
                await work()
            except UNREACHABLE as error:
                logger.warning("%s: the queue cannot be reached (%s)", self.name, error)
                self._claims_from = time.monotonic() + self.lease_seconds  # others have to renew their leases first
                await asyncio.sleep(0.2)

    # Taking

    async def _take(self) -> None:
        """First what others left behind, then what is new."""
        if self._stopping.is_set():
            await asyncio.sleep(0.05)
            return
        if time.monotonic() >= self._claims_from:
            await self._claim()
        room = self.capacity - len(self._running)
        if room <= 0 or self._alone or (self._suspects and self._running):
            self._changed.clear()
            with suppress(TimeoutError):  # leases of others may run out meanwhile
                await asyncio.wait_for(self._changed.wait(), min(0.5, self.lease_seconds / 4))
            return
        new = await self.queue.take(self.name, room)
        self.counts["taken"] += len(new.jobs)
        await self._begin(new)

    async def _claim(self) -> None:
        if time.monotonic() - self._renewed > self.lease_seconds / 2:
            await self._renew_leases()  # this process stood still: what is its own must not look abandoned
        room = 0 if self._alone else self.capacity - len(self._running)
        claimed = await self.queue.claim(self.name, self.lease_seconds, room, not self._running, TRIES)
        self._suspects = claimed.suspects
        self.counts["claimed"] += len(claimed.jobs)
        await self._begin(claimed)
        for job in claimed.parked:
            why = f"it was tried {TRIES} times, and each time its worker did not live to finish it"
            self._start(_Running(job, park=why, error=make_error(job, "failed", f"the request was given up: {why}")))

    async def _begin(self, claimed: Claimed) -> None:
        for entry, text in claimed.unreadable:
            logger.error("%s: an entry of the queue cannot be read: %.200s", self.name, text)
            await self.queue.discard(self.name, entry, text)
        for job in claimed.jobs:
            if job.tries > 1:
                logger.warning("%s: takes over request %s, try %d", self.name, job.request_id, job.tries)
            self._alone = job.tries >= TRIES
            self._start(_Running(job))

    def _start(self, running: _Running) -> None:
        before = self._running.get(running.job.id)
        if before is not None and before.task is not None:
            before.task.cancel()  # its lease ran out and came back to the same worker
        self._running[running.job.id] = running
        if running.error is not None:
            self._something_to_send.set()
        else:
            running.task = asyncio.ensure_future(self._serve(running))

    # Running

    async def _serve(self, running: _Running) -> None:
        job = running.job
        try:
            async with aclosing(
                self.backend.stream(job.id, job.prompt, job.params, job.intermediate)  # type: ignore[type-var]
            ) as outputs:
                async for output in outputs:
                    if output.finish_reason == "abort":
                        raise Unavailable("the engine shut down")
                    running.latest = output
                    if running.unsent:
                        self._something_to_send.set()
        except ValueError as error:
            running.error = make_error(job, "invalid", str(error))
        except (Unavailable, Overloaded) as error:
            logger.warning("%s: gives back request %s (%s)", self.name, job.request_id, error)
            await self._release(running, count_try=False)
        except GenerationFailed as error:
            if job.tries < TRIES:
                await self._release(running, count_try=True)
            else:
                running.error, running.park = make_error(job, "failed", str(error)), str(error)
        except Exception as error:
            logger.exception("%s: request %s", self.name, job.request_id)
            running.error, running.park = make_error(job, "failed", "the worker failed"), repr(error)
        self._something_to_send.set()

    async def _release(self, running: _Running, count_try: bool) -> None:
        self._forget(running)
        self.counts["released"] += 1
        with suppress(*UNREACHABLE):  # then its lease runs out
            await self.queue.release(self.name, running.job, count_try)

    def _forget(self, running: _Running) -> None:
        if self._running.get(running.job.id) is running:
            del self._running[running.job.id]
        self._alone = self._alone and bool(self._running)
        self._changed.set()

    # Sending

    async def _send(self) -> None:
        """All that is new, in one go. If Redis is away it stays new."""
        await self._something_to_send.wait()
        self._something_to_send.clear()
        ready = [(each, each.latest) for each in self._running.values() if each.unsent]
        try:
            going_on = [(each, latest) for each, latest in ready if not each.last and latest is not None]
            if going_on:
                await self.queue.emit([(e.job.server, make_reply(e.job, latest, e.sent)) for e, latest in going_on])
                for each, latest in going_on:
                    each.sent = latest
            for each, _ in ready:
                if each.last and each.job.id in self._running:
                    await self._finish(each)
        except UNREACHABLE:
            self._something_to_send.set()
            raise

    async def _finish(self, running: _Running) -> None:
        reply = running.error
        if reply is None and running.latest is not None:
            reply = make_reply(running.job, running.latest, running.sent)
        own = await self.queue.finish(self.name, running.job, reply, running.park)
        self.counts["lost" if not own else "parked" if running.park else "finished"] += 1
        if own and running.park:
            logger.error("%s: request %s is parked: %s", self.name, running.job.request_id, running.park)
        self._forget(running)

    # Leases

    async def _renew(self) -> None:
        started = time.monotonic()
        if not self.backend.alive():
            logger.critical("%s: the engine is dead or hangs, so this process ends", self.name)
            os._exit(70)  # not by an exception: a thread that hangs would keep the process
        await self._renew_leases()
        facts = {"stats": asdict(self.backend.stats()), "counts": self.counts, "capacity": self.capacity}
        await self.queue.tell_worker(self.name, facts, max(5.0, self.lease_seconds))
        await asyncio.sleep(max(0.0, min(1.0, self.lease_seconds / 4) - (time.monotonic() - started)))

    async def _renew_leases(self) -> None:
        mine = list(self._running.values())
        lost, cancelled = await self.queue.renew(self.name, [each.job for each in mine])
        for each in mine:
            if each.job.id in lost and not each.last:
                logger.warning("%s: request %s is another's now", self.name, each.job.request_id)
                self.counts["lost"] += 1
                self._drop(each)
        for job_id in cancelled - lost:
            await self._cancel(job_id)
        self._renewed = time.monotonic()

    async def _hear_cancellations(self) -> None:
        for entry, job_id in await self.queue.read_cancellations(self._heard):
            self._heard = entry
            await self._cancel(job_id)

    async def _cancel(self, job_id: str) -> None:
        running = self._running.get(job_id)
        if running is not None and not running.last:
            self._drop(running)
            self.counts["cancelled"] += 1
            await self.queue.finish(self.name, running.job, None)

    def _drop(self, running: _Running) -> None:
        if running.task is not None:
            running.task.cancel()
        self._forget(running)

    async def _give_back(self) -> None:
        for running in list(self._running.values()):
            if running.task is not None:
                running.task.cancel()
            await self._release(running, count_try=False)
