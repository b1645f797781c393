"""The queue between API servers and engine workers, in Redis. No accepted request is lost or answered twice.

    API server --submit--> stream of requests --take--> worker     a consumer group: each request goes to one worker
    API server <--replies-- a stream for each server <--emit, finish-- worker

- A request stays in the stream until its last output is in the server's stream: `finish` writes the one and deletes the
  other in one script. So the length of the stream is the number of unfinished requests, which `submit` keeps bounded.
- A worker holds its requests on a lease, which it renews while it lives. A worker that finds an expired lease takes the
  request over (`claim`). The former owner was killed, or was stopped for too long; in the latter case it learns of its
  loss from `renew` and `finish`, which do nothing for a worker that is not the owner.
- When a worker dies, each of its requests has used up a try, also those that only ran beside the cause. So the last try
  of a request is made alone, by a worker that does nothing else meanwhile. If that worker dies too, the request is the
  cause, and is parked.
- Every command may be sent twice, as a client does that has lost its connection before the answer (scripts.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

import redis.asyncio as redis_client
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError, TimeoutError

from labsupport.serving.stack.job import Claimed, Job, parse_jobs
from labsupport.serving.stack.scripts import CANCEL, CLAIM, FINISH, RELEASE, RENEW, SUBMIT

GROUP = "workers"
UNREACHABLE = (ConnectionError, TimeoutError)  # loading its file after a restart counts too
_KEPT_SECONDS = 3600  # how long a job is remembered, to recognize a command that is sent twice
_MOST_PARKED = 1000


class RequestQueue:
    """Both ends of the queue. Methods raise one of `UNREACHABLE` if Redis is gone for ``patience`` seconds."""

    def __init__(
        self, url: str, prefix: str = "labsupport", patience: float = 10.0, block_seconds: float = 0.5
    ) -> None:
        self.prefix, self.block_seconds = prefix, block_seconds
        self.redis: Any = redis_client.from_url(
            url, decode_responses=True, protocol=2, socket_connect_timeout=5, socket_timeout=block_seconds + 10,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), max(1, round(patience / 0.5) + 5)),
            retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError],
        )  # fmt: skip
        scripts = (SUBMIT, CANCEL, CLAIM, RENEW, FINISH, RELEASE)
        self._submit, self._cancel, self._claim, self._renew, self._finish, self._release = (
            self.redis.register_script(script) for script in scripts
        )
        self.requests, self.cancellations, self.parked = (
            f"{prefix}:{name}" for name in ("requests", "cancellations", "parked")
        )

    def replies(self, server: str) -> str:
        return f"{self.prefix}:replies:{server}"

    async def open(self) -> None:
        """Create the consumer group, unless it exists."""
        try:
            await self.redis.xgroup_create(self.requests, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def close(self) -> None:
        await self.redis.aclose()

    async def length(self) -> int:
        """The number of unfinished requests, waiting and running."""
        return await self.redis.xlen(self.requests)

    # API servers

    async def submit(self, job: Job, limit: int) -> bool:
        """Whether it was accepted: fewer than ``limit`` requests were unfinished. Sent twice, it is accepted once."""
        args: list[Any] = [limit, job.to_json(), _KEPT_SECONDS]
        return await self._submit(keys=[self.requests, self._job_key(job.id)], args=args) is not None

    async def cancel(self, job_id: str) -> None:
        """Delete the job if no worker has it yet; else tell its worker."""
        keys = [self.requests, self._job_key(job_id), self.cancellations]
        await self._cancel(keys=keys, args=[GROUP, job_id, _KEPT_SECONDS])

    async def register_server(self, server: str, seconds: float) -> None:
        """Create the server's stream of replies, for ``seconds``. Workers never create it: the server may be gone."""
        key = self.replies(server)
        if not await self.redis.expire(key, round(seconds)):
            await self.redis.xadd(key, {"reply": "{}"})
            await self.redis.expire(key, round(seconds))

    async def read_replies(self, server: str, after: str) -> list[tuple[str, dict[str, Any]]]:
        """(id, reply) of those after the id ``after``. Waits a while for the first."""
        key = self.replies(server)
        found = await self.redis.xread({key: after}, count=1000, block=round(self.block_seconds * 1000))
        return [(id, json.loads(fields["reply"])) for _, entries in _streams(found) for id, fields in entries]

    async def forget_replies(self, server: str, before: str) -> None:
        await self.redis.xtrim(self.replies(server), minid=before, approximate=True)

    # Workers

    async def take(self, worker: str, count: int) -> Claimed:
        """At most ``count`` new jobs. Waits a while for the first."""
        block = round(self.block_seconds * 1000)
        try:
            found = await self.redis.xreadgroup(GROUP, worker, {self.requests: ">"}, count=count, block=block)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self.open()  # Redis was emptied
            return Claimed([])
        entries = [(id, fields.get("job", ""), 1) for _, each in _streams(found) for id, fields in each]
        return Claimed(*parse_jobs(entries))

    async def claim(self, worker: str, lease_seconds: float, count: int, alone: bool, tries: int) -> Claimed:
        """Jobs whose lease has expired. ``alone``: the worker is idle, so it may make a job's last try."""
        args: list[Any] = [GROUP, worker, round(lease_seconds * 1000), count, int(alone), tries]
        taken, parked, suspects = await self._claim(keys=[self.requests], args=args)
        (jobs, unreadable), (given_up, more) = parse_jobs(taken), parse_jobs(parked)
        return Claimed(jobs, unreadable + more, given_up, suspects)

    async def renew(self, worker: str, jobs: Sequence[Job]) -> tuple[set[str], set[str]]:
        """Ids of jobs that belong to another worker now, and of jobs that their clients have cancelled."""
        if not jobs:
            return set(), set()
        keys = [self.requests, *(self._job_key(job.id) for job in jobs)]
        lost, cancelled = await self._renew(keys=keys, args=[GROUP, worker, *(job.entry for job in jobs)])
        of_entry = {job.entry: job.id for job in jobs}
        return {of_entry[entry] for entry in lost}, {of_entry[entry] for entry in cancelled}

    async def emit(self, replies: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Send outputs that are not the last, as (server, reply), in one round trip."""
        async with self.redis.pipeline(transaction=False) as pipeline:
            for server, reply in replies:
                pipeline.xadd(self.replies(server), {"reply": _dump(reply)}, nomkstream=True)
            await pipeline.execute()

    async def finish(self, worker: str, job: Job, reply: dict[str, Any] | None, park: str = "") -> bool:
        """Send the last output and delete the job. False: the job is another worker's. ``park``: why it is given up."""
        keys = [self.requests, self.replies(job.server), self.parked]
        text = "" if reply is None else _dump(reply)
        args: list[Any] = [GROUP, worker, job.entry, text, job.to_json() if park else "", park, _MOST_PARKED]
        return bool(await self._finish(keys=keys, args=args))

    async def release(self, worker: str, job: Job, count_try: bool) -> None:
        """Give the job back at once, to the next worker that claims. ``count_try``: whether this try counts."""
        await self._release(keys=[self.requests], args=[GROUP, worker, job.entry, 0 if count_try else 1])

    async def discard(self, worker: str, entry: str, text: str) -> None:
        """Park what cannot be read. Nobody waits for an answer."""
        args: list[Any] = [GROUP, worker, entry, "", text or "-", "cannot be read", _MOST_PARKED]
        await self._finish(keys=[self.requests, self.replies("nobody"), self.parked], args=args)

    async def read_cancellations(self, after: str) -> list[tuple[str, str]]:
        """(id in the stream, job id) of cancellations after the id ``after``. Waits a while for the first."""
        found = await self.redis.xread({self.cancellations: after}, block=round(self.block_seconds * 1000))
        return [(id, fields["id"]) for _, entries in _streams(found) for id, fields in entries]

    async def tell_worker(self, worker: str, facts: dict[str, Any], seconds: float) -> None:
        """Announce for ``seconds`` that the worker is alive, with its statistics."""
        async with self.redis.pipeline() as pipeline:
            pipeline.sadd(f"{self.prefix}:workers", worker)
            pipeline.set(f"{self.prefix}:worker:{worker}", _dump(facts), px=round(seconds * 1000))
            await pipeline.execute()

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What the living workers have announced."""
        names = sorted(await self.redis.smembers(f"{self.prefix}:workers"))
        announced = await self.redis.mget([f"{self.prefix}:worker:{name}" for name in names]) if names else []
        return {name: json.loads(text) for name, text in zip(names, announced, strict=True) if text is not None}

    def _job_key(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}"


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them until they have ended: before Python 3.12, `asyncio.wait_for`, which the Redis client uses, may
    swallow a cancellation that comes at the same moment as the answer."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)


def _streams(found: Any) -> list[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """XREAD's result, which is None if nothing came."""
    return list(found or [])


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
