"""An engine worker: takes requests from the queue, runs them on its engine, and sends back what comes.

It may be killed at any moment: what it had taken is on a lease, and another worker finishes it. It may also be stopped,
lose its leases and go on: then it drops what is no longer its own. On SIGTERM it finishes what it has, as far as the
time allows, and gives back the rest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from labsupport.serving.backend import Backend
from labsupport.serving.stack.job import Claimed
from labsupport.serving.stack.queue import UNREACHABLE, RequestQueue, end_tasks
from labsupport.serving.stack.replies import make_error
from labsupport.serving.stack.runs import TRIES, Run, Runs

logger = logging.getLogger("labsupport.serving")


class Worker:
    """One worker process's loop around its engine.

    Args:
        queue, backend: where requests come from, and what runs them. `run` starts the backend, and shuts it down.
        name: no other living worker has it.
        capacity: how many requests it holds at a time; as many as the engine runs.
        lease_seconds: how long the requests of a killed worker wait. Must be longer than a worker may pause: if a lease
            expires while its worker lives, the work is done twice.

    Raises:
        ValueError: ``capacity`` or ``lease_seconds`` is not positive.
    """

    def __init__(
        self, queue: RequestQueue, backend: Backend, name: str, capacity: int, lease_seconds: float = 10.0
    ) -> None:
        if capacity < 1 or lease_seconds <= 0:
            raise ValueError(f"capacity and lease_seconds must be positive; got {capacity} and {lease_seconds}")
        self.queue, self.backend, self.name, self.capacity = queue, backend, name, capacity
        self.lease_seconds = lease_seconds
        self.runs = Runs(queue, backend, name)
        self.counts = self.runs.counts
        self._stopping = asyncio.Event()
        self._suspects = 0
        self._renewed = self._claims_from = 0.0
        self._heard = "0"  # the last cancellation

    def stop(self) -> None:
        """Take no more requests, and let `run` end when those in hand are finished."""
        self._stopping.set()
        self.runs.freed.set()

    async def run(self, drain_seconds: float = 30.0) -> None:
        """Until `stop`, and then until all is finished, but at most ``drain_seconds`` longer."""
        await self.backend.start()
        tasks = [
            asyncio.ensure_future(self._forever(each))
            for each in (self._take, self.runs.send, self._renew, self._hear_cancellations)
        ]
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            deadline = time.monotonic() + drain_seconds
            while self.runs and time.monotonic() < deadline and not any(task.done() for task in tasks):
                await asyncio.sleep(0.02)
            await self.runs.give_back()
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
        if self._stopping.is_set():  # meanwhile
            return
        room = self.capacity - len(self.runs)
        if room <= 0 or self.runs.alone or (self._suspects and self.runs):
            self.runs.freed.clear()
            with suppress(TimeoutError):  # meanwhile the leases of others may expire
                await asyncio.wait_for(self.runs.freed.wait(), min(0.5, self.lease_seconds / 4))
            return
        new = await self.queue.take(self.name, room)
        self.counts["taken"] += len(new.jobs)
        await self._begin(new)

    async def _claim(self) -> None:
        if time.monotonic() - self._renewed > self.lease_seconds / 2:
            await self._renew_leases()  # this process was stopped: its own jobs must not look abandoned
        room = 0 if self.runs.alone else self.capacity - len(self.runs)
        claimed = await self.queue.claim(self.name, self.lease_seconds, room, not self.runs, TRIES)
        self._suspects = claimed.suspects
        self.counts["claimed"] += len(claimed.jobs)
        await self._begin(claimed)
        for job in claimed.parked:
            why = f"it was tried {TRIES} times, and each time its worker did not live to finish it"
            self.runs.start(Run(job, park=why, error=make_error(job, "failed", f"the request was given up: {why}")))

    async def _begin(self, claimed: Claimed) -> None:
        for entry, text in claimed.unreadable:
            logger.error("%s: an entry of the queue cannot be read: %.200s", self.name, text)
            await self.queue.discard(self.name, entry, text)
        for job in claimed.jobs:
            if job.tries > 1:
                logger.warning("%s: takes over request %s, try %d", self.name, job.request_id, job.tries)
            self.runs.start(Run(job, alone=job.tries >= TRIES))

    # Leases

    async def _renew(self) -> None:
        started = time.monotonic()
        if not self.backend.alive():
            logger.critical("%s: the engine is dead or hangs, so this process ends", self.name)
            os._exit(70)  # not by an exception: a thread that hangs would keep the process alive
        await self._renew_leases()
        facts = {"stats": asdict(self.backend.stats()), "counts": self.counts, "capacity": self.capacity}
        await self.queue.tell_worker(self.name, facts, max(5.0, self.lease_seconds))
        await asyncio.sleep(max(0.0, min(1.0, self.lease_seconds / 4) - (time.monotonic() - started)))

    async def _renew_leases(self) -> None:
        mine = list(self.runs)
        lost, cancelled = await self.queue.renew(self.name, [run.job for run in mine])
        for run in mine:
            if run.job.id in lost and not run.last:
                logger.warning("%s: request %s is another worker's now", self.name, run.job.request_id)
                self.counts["lost"] += 1
                self.runs.drop(run)
        for job_id in cancelled - lost:
            await self.runs.cancel(job_id)
        self._renewed = time.monotonic()

    async def _hear_cancellations(self) -> None:
        for entry, job_id in await self.queue.read_cancellations(self._heard):
            self._heard = entry
            await self.runs.cancel(job_id)
