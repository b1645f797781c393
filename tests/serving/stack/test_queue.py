"""The queue in Redis, its API side and its workers: no accepted request is lost or answered twice.

A worker is killed here by cancelling its task: like a killed process, it gives nothing back. Its engine is a stand-in
whose tokens are known and come when the test says so. Redis is real, on a free port and in the test's own folder.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.lm.tokenizer import ByteTokenizer
from labsupport.serving.backend import GenerationFailed, Overloaded, Unavailable

pytest.importorskip("redis")
from labsupport.serving.stack.backend import RedisBackend
from labsupport.serving.stack.job import Job
from labsupport.serving.stack.queue import RequestQueue
from labsupport.serving.stack.worker import Worker

SERVER = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(SERVER is None, reason="redis-server is not installed (Debian: redis-server)")

LEASE = 1.0  # seconds; renewed four times as often
PATIENCE = 120.0  # seconds that a slow machine may take: only failing tests wait that long


# A Redis, engines and their clients ----------------------------------------------------------------------------------


class Redis:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.folder = f"redis://127.0.0.1:{self.port}/0", folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen(
            [str(SERVER), *options, "--appendonly", "yes", "--appendfsync", "everysec"], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.02)
        raise AssertionError("redis-server does not listen")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.kill()


def continuation(prompt: list[int], count: int) -> list[int]:
    """What every engine here generates."""
    return [97 + (sum(prompt) + 7 * number) % 26 for number in range(count)]


class Engine:
    """A `Backend` that generates a token for each of ``permits``; ``at_token`` is called before each."""

    model_name, max_model_len, tokenizer, max_in_flight = "letters", 1000, ByteTokenizer(), None

    def __init__(self, permits: int | None = None, at_token: Callable[[list[int], int], None] | None = None) -> None:
        self.permits = asyncio.Semaphore(10**9 if permits is None else permits)
        self.at_token = at_token or (lambda prompt, number: None)
        self.open = 0
        self.served: list[list[int]] = []

    async def start(self) -> None: ...

    async def stream(
        self, request_id: str, prompt: Any, params: SamplingParams, intermediate: bool = True
    ) -> AsyncIterator[RequestOutput]:
        self.served.append(prompt)
        self.open += 1
        try:
            tokens = continuation(prompt, params.max_tokens)
            for number in range(1, len(tokens) + 1):
                await self.permits.acquire()
                self.at_token(prompt, number)
                last = number == len(tokens)
                if intermediate or last:
                    text = self.tokenizer.decode(tokens[:number])
                    reason: Any = "length" if last else None
                    yield RequestOutput(request_id, prompt, text, tokens[:number], reason, None, 0, RequestTimes())
                await asyncio.sleep(0)
        finally:
            self.open -= 1

    def alive(self) -> bool:
        return True

    def ready(self) -> bool:
        return True

    def stats(self) -> EngineStats:
        return EngineStats(self.open, 0, 0.0, 0, 0, 0, 0, 0, 0, {})

    async def shutdown(self, drain_seconds: float) -> None: ...


class World:
    """An API server and some workers around a Redis."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.tasks: dict[Worker, asyncio.Task[None]] = {}
        self.apis: list[RedisBackend] = []
        self.look = self.queue()

    def queue(self) -> RequestQueue:
        return RequestQueue(self.redis.url, patience=1.0, block_seconds=0.1)

    async def api(self, **options: Any) -> RedisBackend:
        api = RedisBackend(self.queue(), ByteTokenizer(), "letters", 1000, **options)
        await api.start()
        self.apis.append(api)
        return api

    def worker(self, engine: Any, name: str, capacity: int = 8, drain_seconds: float = 5.0) -> Worker:
        worker = Worker(self.queue(), engine, name, capacity, LEASE)
        self.tasks[worker] = asyncio.ensure_future(worker.run(drain_seconds))
        return worker

    async def kill(self, worker: Worker) -> None:
        task = self.tasks.pop(worker)
        task.cancel()
        await asyncio.wait([task])

    async def close(self) -> None:
        for worker in list(self.tasks):
            await self.kill(worker)
        for api in self.apis:
            await api.shutdown(0)
        await self.look.close()


def in_a_world(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test: ``test(world)``."""

    def run(redis: Redis) -> None:
        async def whole() -> None:
            world = World(redis)
            try:
                await asyncio.wait_for(test(world), 2 * PATIENCE)
            finally:
                await world.close()

        asyncio.run(whole())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return needs_redis(run)


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.02)


async def ask(api: RedisBackend, prompt: str, count: int = 6, **options: Any) -> RequestOutput:
    """The last output. Every earlier one is a prefix of it: nothing is doubled, left out or taken back."""
    seen: list[RequestOutput] = []
    params = SamplingParams(max_tokens=count, **options)
    async with aclosing(api.stream("request", prompt, params)) as outputs:  # type: ignore[type-var]
        async for output in outputs:
            assert not any(each.finished for each in seen)
            seen.append(output)
    last = seen[-1]
    assert last.finished and last.token_ids == continuation(list(prompt.encode()), count)
    assert last.text == ByteTokenizer().decode(last.token_ids)
    assert all(last.token_ids[: len(each.token_ids)] == each.token_ids for each in seen)
    assert all(last.text.startswith(each.text) for each in seen)
    return last


# The ordinary course --------------------------------------------------------------------------------------------------


@in_a_world
async def test_answers_come_back_to_the_server_that_asked(world: World) -> None:
    first, second = await world.api(), await world.api()
    world.worker(Engine(), "a"), world.worker(Engine(), "b")
    prompts = [f"prompt {number}" for number in range(30)]
    await asyncio.gather(*(ask((first, second)[i % 2], prompt, 3 + i % 5) for i, prompt in enumerate(prompts)))
    assert await world.look.length() == 0
    assert sum(worker.counts["finished"] for worker in world.tasks) == 30
    await until(lambda: first.ready() and len(first._workers) == 2)


@in_a_world
async def test_tokens_come_while_the_request_runs(world: World) -> None:
    api, engine = await world.api(), Engine(permits=0)
    world.worker(engine, "a")
    async with aclosing(api.stream("r", "abc", SamplingParams(max_tokens=3))) as outputs:  # type: ignore[type-var]
        assert (await anext(outputs)).token_ids == []  # accepted
        for count in (1, 2, 3):
            engine.permits.release()
            assert len((await anext(outputs)).token_ids) == count


@in_a_world
async def test_the_queue_is_bounded_by_unfinished_requests_of_all_servers(world: World) -> None:
    first, second = await world.api(max_in_flight=3), await world.api(max_in_flight=3)
    engine = Engine(permits=0)
    world.worker(engine, "a", capacity=1)
    waiting = [asyncio.ensure_future(ask(api, f"{i}")) for i, api in enumerate((first, second, first))]
    await until(lambda: _length_is(world, 3))
    with pytest.raises(Overloaded) as refused:
        await ask(second, "one more")
    assert refused.value.retry_after > 0
    for _ in range(18):
        engine.permits.release()
    await asyncio.gather(*waiting)
    engine.permits = asyncio.Semaphore(100)
    await ask(second, "now there is room")
    assert list(b"one more") not in engine.served


async def _length_is(world: World, length: int) -> bool:
    return await world.look.length() == length


@in_a_world
async def test_a_submission_that_is_sent_twice_is_accepted_once(world: World) -> None:
    await world.look.open()
    job = Job("id", "request", "server", [1, 2], SamplingParams(max_tokens=2))
    assert await world.look.submit(job, 1) and await world.look.submit(job, 1)
    assert await world.look.length() == 1
    (taken,) = (await world.look.take("a", 5)).jobs
    assert await world.look.finish("a", taken, {"id": "id"})
    assert await world.look.submit(job, 1) and await world.look.length() == 0, "also after it was finished"
    assert not await world.look.finish("a", taken, {"id": "id"}), "and it is finished once"


@in_a_world
async def test_a_bad_prompt_is_the_clients_fault_and_tried_once(world: World) -> None:
    class Picky(Engine):
        async def stream(self, *arguments: Any, **options: Any) -> AsyncIterator[RequestOutput]:
            self.served.append(arguments[1])
            raise ValueError("prompt must be nicer")
            yield

    api, engine = await world.api(), Picky()
    world.worker(engine, "a")
    with pytest.raises(ValueError, match="prompt must be nicer"):
        await ask(api, "x")
    with pytest.raises(ValueError, match="at least one token"):
        await ask(api, "")
    with pytest.raises(ValueError, match="max_model_len = 1000"):
        await ask(api, "x", 1000)
    assert len(engine.served) == 1 and await world.look.length() == 0


@in_a_world
async def test_what_cannot_be_read_is_parked_and_holds_up_nobody(world: World) -> None:
    api = await world.api()
    for text in ("nonsense", '{"id": 1}', "[]"):
        await world.look.redis.xadd(world.look.requests, {"job": text})
    await world.look.redis.xadd(world.look.requests, {"other": "field"})
    world.worker(Engine(), "a")
    await ask(api, "x")
    await until(lambda: _length_is(world, 0))
    parked = await world.look.redis.xrange(world.look.parked)
    assert [fields["why"] for _, fields in parked] == ["cannot be read"] * 4


# Clients that leave ---------------------------------------------------------------------------------------------------


@in_a_world
async def test_a_client_that_leaves_frees_its_place_whether_it_waits_or_runs(world: World) -> None:
    api, engine = await world.api(), Engine(permits=2)
    worker = world.worker(engine, "a", capacity=1)
    runs = asyncio.ensure_future(ask(api, "runs"))
    await until(lambda: engine.open == 1)
    waits = asyncio.ensure_future(ask(api, "waits"))
    await until(lambda: _length_is(world, 2))
    waits.cancel()
    await until(lambda: _length_is(world, 1))
    runs.cancel()
    await until(lambda: engine.open == 0)
    await until(lambda: _length_is(world, 0))
    assert engine.served == [list(b"runs")] and worker.counts["cancelled"] == 1
    engine.permits = asyncio.Semaphore(100)
    await ask(api, "the next")


# Workers that die -----------------------------------------------------------------------------------------------------


@in_a_world
async def test_requests_of_a_killed_worker_are_finished_by_another(world: World) -> None:
    api, dying = await world.api(), Engine(permits=20)
    worker = world.worker(dying, "dies")
    asked = [asyncio.ensure_future(ask(api, f"prompt {number}", 8)) for number in range(6)]
    await until(lambda: dying.open == 6 and dying.permits.locked())  # all have begun, none is finished
    assert not any(each.done() for each in asked)
    await world.kill(worker)
    other = Engine()
    second = world.worker(other, "lives")
    await asyncio.gather(*asked)
    assert second.counts["claimed"] == second.counts["finished"] == 6
    assert await world.look.length() == 0


@in_a_world
async def test_a_live_worker_keeps_its_requests_for_longer_than_a_lease(world: World) -> None:
    api, slow, idle = await world.api(), Engine(permits=1), Engine()
    world.worker(slow, "slow", capacity=1)
    asked = asyncio.ensure_future(ask(api, "x", 3))
    await until(lambda: slow.open == 1)
    world.worker(idle, "idle")
    await asyncio.sleep(2 * LEASE)
    slow.permits.release()
    slow.permits.release()
    await asked
    assert idle.served == []


@in_a_world
async def test_a_worker_that_stood_still_does_not_answer_a_second_time(world: World) -> None:
    api, still, quick = await world.api(), Engine(permits=2), Engine()
    sleeper = world.worker(still, "sleeper")
    asked = asyncio.ensure_future(ask(api, "x", 5))
    await until(lambda: still.permits.locked() and still.open == 1)

    async def stands_still(*_: Any) -> Any:
        await asyncio.sleep(10 * PATIENCE)

    real_renew, sleeper.queue.renew = sleeper.queue.renew, stands_still  # type: ignore[method-assign,assignment]
    sleeper.queue.claim = stands_still  # type: ignore[method-assign,assignment]
    world.worker(quick, "quick")
    await asked
    assert quick.served == still.served
    before = await world.look.redis.xlen(world.look.replies(api.server))
    for _ in range(5):
        still.permits.release()  # it wakes up and goes on
    await until(lambda: sleeper.counts["lost"] == 1)
    finals = await world.look.redis.xrange(world.look.replies(api.server))
    assert sum('"reason":"length"' in fields["reply"] for _, fields in finals) <= 1 and before <= len(finals) + 1
    assert await real_renew("sleeper", []) == (set(), set())


@pytest.mark.slow
@in_a_world
async def test_a_request_that_kills_its_worker_is_parked_after_three_tries_and_takes_nobody_along(world: World) -> None:
    api = await world.api()
    deaths: list[int] = []
    dying: list[asyncio.Future[None]] = []

    def serve() -> None:
        """A worker in a process that a supervisor restarts."""

        def at_token(prompt: list[int], number: int) -> None:
            if bytes(prompt) == b"poison" and number == 2:
                deaths.append(len(engine.served))
                engine.permits = asyncio.Semaphore(0)  # a dead engine gives no more tokens
                dying.append(asyncio.ensure_future(die()))
                raise asyncio.CancelledError

        async def die() -> None:
            await world.kill(worker)
            serve()

        engine = Engine(at_token=at_token)
        worker = world.worker(engine, "a")

    async def one_after_another() -> None:
        for number in range(4):
            await ask(api, f"innocent {number}", 300)

    innocent = [asyncio.ensure_future(ask(api, f"beside {number}", 300)) for number in range(3)]
    poison = asyncio.ensure_future(ask(api, "poison"))
    await until(lambda: _length_is(world, 4))
    serve()
    with pytest.raises(GenerationFailed, match="tried 3 times"):
        await poison
    await asyncio.gather(*innocent, one_after_another())
    assert len(deaths) == 3 and await world.look.length() == 0
    ((_, parked),) = await world.look.redis.xrange(world.look.parked)
    assert Job.from_json(parked["job"], "", 0).prompt == list(b"poison")


@in_a_world
async def test_a_request_that_breaks_the_engines_step_is_parked_after_three_tries(world: World) -> None:
    def at_token(prompt: list[int], number: int) -> None:
        if bytes(prompt) == b"breaks":
            raise GenerationFailed("a step failed")

    api, engine = await world.api(), Engine(at_token=at_token)
    worker = world.worker(engine, "a")
    with pytest.raises(GenerationFailed):
        await ask(api, "breaks")
    assert len(engine.served) == 3 and worker.counts["parked"] == 1
    await ask(api, "works")


@in_a_world
async def test_a_worker_that_is_stopped_finishes_or_gives_back(world: World) -> None:
    api, first = await world.api(), Engine(permits=2)
    worker = world.worker(first, "first", drain_seconds=1.0)
    take, taking = worker.queue.take, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal taking
        taking += 1
        found = await take(*arguments)
        taking -= 1
        return found

    worker.queue.take = counted  # type: ignore[method-assign, assignment]
    asked = [asyncio.ensure_future(ask(api, f"{number}", 4)) for number in range(2)]
    await until(lambda: first.permits.locked() and first.open == 2)
    task = world.tasks.pop(worker)
    worker.stop()
    second = Engine()
    await until(lambda: not taking)  # what it asked for before it was stopped, it may still get
    late = asyncio.ensure_future(ask(api, "late"))
    await until(lambda: _length_is(world, 3))
    await asyncio.wait([task])  # when its time to drain is over
    task.result()
    assert worker.counts["released"] == 2 and list(b"late") not in first.served
    world.worker(second, "second")
    await asyncio.gather(*asked, late)


# A Redis that goes away -----------------------------------------------------------------------------------------------


@in_a_world
async def test_redis_may_be_killed_and_started_again_while_requests_run_and_wait(world: World) -> None:
    api, engine = await world.api(), Engine(permits=5)
    worker = world.worker(engine, "a", capacity=2)
    asked = [asyncio.ensure_future(ask(api, f"prompt {number}", 6)) for number in range(5)]
    await until(lambda: engine.permits.locked())
    await until(lambda: _length_is(world, 5))
    world.redis.kill()
    for _ in range(3):
        engine.permits.release()  # the engine goes on meanwhile
    with pytest.raises(Unavailable):  # its client has given up trying again
        await ask(api, "while it is away")
    await until(lambda: worker._claims_from > 0)  # so has the worker's
    world.redis.start()
    for _ in range(100):
        engine.permits.release()
    await asyncio.gather(*asked)
    await until(lambda: _length_is(world, 0))
    await ask(api, "afterwards")
    assert api.alive()


@in_a_world
async def test_without_redis_a_server_is_not_ready_and_says_so(world: World) -> None:
    world.redis.kill()
    api = await world.api()
    with pytest.raises(Unavailable, match="the queue cannot be reached"):
        await ask(api, "x")
    assert api.alive() and not api.ready()
    world.redis.start()


# Through the API ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def client_of(api: RedisBackend) -> AsyncIterator[Any]:
    httpx = pytest.importorskip("httpx")
    from labsupport.serving.api import create_app

    app = create_app(api, drain_seconds=1)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=None) as client:
        yield client


@in_a_world
async def test_errors_have_openais_shape(world: World) -> None:
    def at_token(prompt: list[int], number: int) -> None:
        if bytes(prompt) == b"breaks":
            raise GenerationFailed("secret: a step failed")

    api = RedisBackend(world.queue(), ByteTokenizer(), "letters", 1000, max_in_flight=1)
    async with client_of(api) as client:
        engine = Engine(at_token=at_token)
        worker = world.worker(engine, "a")
        good = await client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3, "model": "letters"})
        assert good.status_code == 200
        assert good.json()["choices"][0]["text"] == ByteTokenizer().decode(continuation(list(b"abc"), 3))
        broken = await client.post("/v1/completions", json={"prompt": "breaks", "max_tokens": 3, "model": "letters"})
        assert broken.status_code == 500 and broken.json()["error"]["type"] == "server_error"
        assert "secret" not in broken.text
        await world.kill(worker)
        waits = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "waits", "max_tokens": 3}))
        await until(lambda: _length_is(world, 1))
        full = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 3})
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        world.worker(Engine(), "b")
        assert (await waits).status_code == 200
        await api.shutdown(1)
