"""The queue between API servers and engine workers, in Redis, and what makes it lose nothing.

    API server --submit--> stream of requests --take--> worker     a consumer group: each request goes to one worker
    API server <--replies-- a stream for each server <--emit, finish-- worker

- A request stays in the stream until its last output is in the server's stream: `finish` writes the one and deletes the
  other in one script. So the length of the stream is the number of unfinished requests, by which `submit` is bounded.
- A worker has what it took on a lease, which it renews while it lives. Whoever finds a lease that has run out takes the
  request over (`claim`): a worker that was killed, or that stood still for too long. The latter learns of it from
  `renew` and from `finish`, which do nothing for those who are not the owner.
- A request whose worker died counts a try. Those that ran beside it count one too, though they may be innocent: the
  last try is made alone, by a worker that does nothing else meanwhile. Who dies of it then is known, and is parked.
- Every command may be sent twice, as a client does that has lost its connection before the answer.

Scripts run in Redis without anybody in between, so what they check still holds when they write.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis.asyncio as redis_client
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError, TimeoutError

from labsupport.inference.sampling import SamplingParams

GROUP = "workers"
UNREACHABLE = (ConnectionError, TimeoutError)  # of Redis; loading its file after a restart counts too
_KEPT_SECONDS = 3600  # of what is only kept to recognize a command that comes twice
_MOST_PARKED = 1000

_SUBMIT = """
local entry = redis.call('HGET', KEYS[2], 'entry')
if entry then return entry end
if redis.call('HEXISTS', KEYS[2], 'cancelled') == 1 then return 'cancelled' end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
entry = redis.call('XADD', KEYS[1], '*', 'job', ARGV[2])
redis.call('HSET', KEYS[2], 'entry', entry)
redis.call('EXPIRE', KEYS[2], ARGV[3])
return entry
"""

_CANCEL = """
local entry = redis.call('HGET', KEYS[2], 'entry')
redis.call('HSET', KEYS[2], 'cancelled', 1)
redis.call('EXPIRE', KEYS[2], ARGV[3])
if not entry then return 0 end
if #redis.call('XPENDING', KEYS[1], ARGV[1], entry, entry, 1) == 0 then
    return redis.call('XDEL', KEYS[1], entry)
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'id', ARGV[2])
return 1
"""

_CLAIM = """
local taken, parked, suspects = {}, {}, 0
local room, alone, tries_allowed = tonumber(ARGV[4]), ARGV[5] == '1', tonumber(ARGV[6])
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', 100)) do
    local entry, tries = pending[1], pending[4]
    local found = redis.call('XRANGE', KEYS[1], entry, entry)
    local take = false
    if #found == 0 then
        redis.call('XACK', KEYS[1], ARGV[1], entry)
    elseif tries >= tries_allowed then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
        table.insert(parked, {entry, found[1][2][2], tries})
    elseif tries == tries_allowed - 1 and tries > 0 then
        suspects = suspects + 1
        take = alone and room > 0 and #taken == 0
        if take then room = 0 end
    elseif room > 0 then
        take, room, alone = true, room - 1, false
    end
    if take then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry)
        table.insert(taken, {entry, found[1][2][2], tries + 1})
    end
end
return {taken, parked, suspects}
"""

_OWNED = """
local function owned(requests, group, consumer, entry)
    local pending = redis.call('XPENDING', requests, group, entry, entry, 1)
    return #pending > 0 and pending[1][2] == consumer and pending[1]
end
"""

_RENEW = (
    _OWNED
    + """
local lost, cancelled = {}, {}
for i = 3, #ARGV do
    local entry = ARGV[i]
    if owned(KEYS[1], ARGV[1], ARGV[2], entry) then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
    else
        table.insert(lost, entry)
    end
    if redis.call('HEXISTS', KEYS[i - 1], 'cancelled') == 1 then table.insert(cancelled, entry) end
end
return {lost, cancelled}
"""
)

_FINISH = (
    _OWNED
    + """
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
if ARGV[4] ~= '' then redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'reply', ARGV[4]) end
if ARGV[5] ~= '' then redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'job', ARGV[5], 'why', ARGV[6]) end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
return 1
"""
)

_RELEASE = (
    _OWNED
    + """
local pending = owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if not pending then return 0 end
local tries = math.max(0, pending[4] - tonumber(ARGV[4]))
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', 86400000, 'RETRYCOUNT', tries, 'JUSTID')
return 1
"""
)


@dataclass(frozen=True)
class Job:
    """One request of one choice on its way through the queue.

    Attributes:
        id: no other job has it, whatever clients call their requests.
        server: whose stream of replies the outputs go to.
        intermediate: whether outputs before the last are wanted.
        entry, tries: set when a worker takes it: its place in the stream, and how often it was taken, this time too.
    """

    id: str
    request_id: str
    server: str
    prompt: list[int]
    params: SamplingParams
    intermediate: bool = True
    entry: str = ""
    tries: int = 0

    def to_json(self) -> str:
        fields = asdict(self)
        del fields["entry"], fields["tries"]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, entry: str, tries: int) -> Job:
        """
        Raises:
            ValueError: it is not what `to_json` wrote, such as by another version.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "params": SamplingParams(**fields["params"])}, entry=entry, tries=tries)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"job must be what to_json() gives: {error}") from None


@dataclass(frozen=True)
class Claimed:
    """What a worker got.

    Attributes:
        jobs: to run.
        unreadable: (entry, text) of what is no job.
        parked: to be given up: they were tried too often.
        suspects: how many wait for a worker that has nothing else to do.
    """

    jobs: list[Job]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    parked: list[Job] = field(default_factory=list)
    suspects: int = 0


class RequestQueue:
    """Both ends of the queue. Methods raise one of `UNREACHABLE` if Redis is away for ``patience`` seconds."""

    def __init__(
        self, url: str, prefix: str = "labsupport", patience: float = 10.0, block_seconds: float = 0.5
    ) -> None:
        self.prefix, self.block_seconds = prefix, block_seconds
        self.redis: Any = redis_client.from_url(
            url, decode_responses=True, protocol=2, socket_connect_timeout=5, socket_timeout=block_seconds + 10,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), max(1, round(patience / 0.5) + 5)),
            retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError],
        )  # fmt: skip
        scripts = (_SUBMIT, _CANCEL, _CLAIM, _RENEW, _FINISH, _RELEASE)
        self._submit, self._cancel, self._claim, self._renew, self._finish, self._release = (
            self.redis.register_script(script) for script in scripts
        )
        self.requests, self.cancellations, self.parked = (
            f"{prefix}:{name}" for name in ("requests", "cancellations", "parked")
        )

    def replies(self, server: str) -> str:
        return f"{self.prefix}:replies:{server}"

    async def open(self) -> None:
        """Make the consumer group, unless it is there."""
        try:
            await self.redis.xgroup_create(self.requests, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def close(self) -> None:
        await self.redis.aclose()

    async def length(self) -> int:
        """Requests that wait or run."""
        return await self.redis.xlen(self.requests)

    # API servers

    async def submit(self, job: Job, limit: int) -> bool:
        """Whether it is accepted: fewer than ``limit`` requests are unfinished. Sent twice, it is accepted once."""
        args: list[Any] = [limit, job.to_json(), _KEPT_SECONDS]
        return await self._submit(keys=[self.requests, self._job_key(job.id)], args=args) is not None

    async def cancel(self, job_id: str) -> None:
        """At once if no worker has it yet; else its worker is told."""
        keys = [self.requests, self._job_key(job_id), self.cancellations]
        await self._cancel(keys=keys, args=[GROUP, job_id, _KEPT_SECONDS])

    async def register_server(self, server: str, seconds: float) -> None:
        """Make the server's stream of replies, for so many seconds. Workers make none: the server may be gone."""
        key = self.replies(server)
        if not await self.redis.expire(key, round(seconds)):
            await self.redis.xadd(key, {"reply": "{}"})
            await self.redis.expire(key, round(seconds))

    async def read_replies(self, server: str, after: str) -> list[tuple[str, dict[str, Any]]]:
        """Replies that came after the one with that id, each with its own. Waits a while for the first."""
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
        return Claimed(*_jobs(entries))

    async def claim(self, worker: str, lease_seconds: float, count: int, alone: bool, tries: int) -> Claimed:
        """Jobs whose lease has run out. ``alone``: the worker has nothing else to do, so it may make a last try."""
        args: list[Any] = [GROUP, worker, round(lease_seconds * 1000), count, int(alone), tries]
        taken, parked, suspects = await self._claim(keys=[self.requests], args=args)
        (jobs, unreadable), (given_up, more) = _jobs(taken), _jobs(parked)
        return Claimed(jobs, unreadable + more, given_up, suspects)

    async def renew(self, worker: str, jobs: Sequence[Job]) -> tuple[set[str], set[str]]:
        """Ids of jobs that are another's now, and of those that their clients cancelled."""
        if not jobs:
            return set(), set()
        keys = [self.requests, *(self._job_key(job.id) for job in jobs)]
        lost, cancelled = await self._renew(keys=keys, args=[GROUP, worker, *(job.entry for job in jobs)])
        of_entry = {job.entry: job.id for job in jobs}
        return {of_entry[entry] for entry in lost}, {of_entry[entry] for entry in cancelled}

    async def emit(self, replies: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Outputs before the last: (server, reply) each, in one go."""
        async with self.redis.pipeline(transaction=False) as pipeline:
            for server, reply in replies:
                pipeline.xadd(self.replies(server), {"reply": _dump(reply)}, nomkstream=True)
            await pipeline.execute()

    async def finish(self, worker: str, job: Job, reply: dict[str, Any] | None, park: str = "") -> bool:
        """The last output, after which the job is gone. False: it was another's. ``park``: why it is given up."""
        keys = [self.requests, self.replies(job.server), self.parked]
        text = "" if reply is None else _dump(reply)
        args: list[Any] = [GROUP, worker, job.entry, text, job.to_json() if park else "", park, _MOST_PARKED]
        return bool(await self._finish(keys=keys, args=args))

    async def release(self, worker: str, job: Job, count_try: bool) -> None:
        """Give it back at once, for whoever claims next."""
        await self._release(keys=[self.requests], args=[GROUP, worker, job.entry, 0 if count_try else 1])

    async def discard(self, worker: str, entry: str, text: str) -> None:
        """Park what cannot be read. There is nobody to tell."""
        args: list[Any] = [GROUP, worker, entry, "", text or "-", "cannot be read", _MOST_PARKED]
        await self._finish(keys=[self.requests, self.replies("nobody"), self.parked], args=args)

    async def read_cancellations(self, after: str) -> list[tuple[str, str]]:
        """(id in the stream, id of the job) of cancellations after that id. Waits a while for the first."""
        found = await self.redis.xread({self.cancellations: after}, block=round(self.block_seconds * 1000))
        return [(id, fields["id"]) for _, entries in _streams(found) for id, fields in entries]

    async def tell_worker(self, worker: str, facts: dict[str, Any], seconds: float) -> None:
        """Say for so long that the worker lives, and how it is."""
        async with self.redis.pipeline() as pipeline:
            pipeline.sadd(f"{self.prefix}:workers", worker)
            pipeline.set(f"{self.prefix}:worker:{worker}", _dump(facts), px=round(seconds * 1000))
            await pipeline.execute()

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What the workers that live have told."""
        names = sorted(await self.redis.smembers(f"{self.prefix}:workers"))
        told = await self.redis.mget([f"{self.prefix}:worker:{name}" for name in names]) if names else []
        return {name: json.loads(text) for name, text in zip(names, told, strict=True) if text is not None}

    def _job_key(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}"


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them until they have ended: before Python 3.12, `asyncio.wait_for`, which the client uses, may swallow a
    cancellation that comes at the same moment as the answer."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)


def _jobs(entries: Sequence[Sequence[Any]]) -> tuple[list[Job], list[tuple[str, str]]]:
    good, bad = [], []
    for entry, text, tries in entries:
        try:
            good.append(Job.from_json(text, entry, tries))
        except ValueError:
            bad.append((entry, text))
    return good, bad


def _streams(found: Any) -> list[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """What XREAD gives, None if nothing came."""
    return list(found or [])


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
