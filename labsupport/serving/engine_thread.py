"""The engine in a thread of its own, so that no request waits for another and nothing waits for a step.

An engine's step takes milliseconds to seconds and must not run in the event loop: everything else, the health check
included, would wait for it (erratum E78). Here one thread owns the engine. Requests reach it through a list under a
lock; what a step gave goes back to the event loop in one call for the whole step, not one a token, since each of them
wakes the loop. Outputs are cumulative, so only the latest of each request is kept: a slow reader costs no memory.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, ClassVar

from labsupport.inference.request import RequestOutput
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.serving.backend import Backend, GenerationFailed, Overloaded, Unavailable
from labsupport.serving.mailbox import Delivery, Mailbox, accepted, hand_over

logger = logging.getLogger("labsupport.serving")

_FAILURES_TO_DIE = 3  # steps in a row that raised: a restart may help, another try will not
_JOIN_SECONDS = 30.0


class EngineThread:
    """A `Backend` over an engine of this process.

    Args:
        engine: an `LLMEngine`. From now on only this object touches it while requests run.
        max_waiting: requests accepted beyond the engine's ``max_num_seqs``; the next one is `Overloaded`.
        model_name: what clients call the model; None: the name it was loaded by.
        stall_seconds: a step that takes longer counts as hung: `alive` is False until it ends.
    """

    _of_engine: ClassVar[weakref.WeakValueDictionary[int, EngineThread]] = weakref.WeakValueDictionary()

    def __init__(
        self, engine: Any, max_waiting: int = 64, *, model_name: str | None = None, stall_seconds: float = 60.0
    ) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be 0 or more; got {max_waiting}")
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.model_name: str = model_name or engine.lm.name
        self.max_num_seqs: int = engine.scheduler.max_num_seqs
        self.max_in_flight: int | None = self.max_num_seqs + max_waiting
        self.max_model_len: int = min(engine.max_model_len, engine.cache.num_blocks * engine.cache.block_size)
        self.stall_seconds = stall_seconds
        self._changed = threading.Condition()  # guards all below; never held while the engine computes
        self._streams: dict[str, Mailbox] = {}  # accepted, and not yet through
        self._arrived: list[Mailbox] = []
        self._left: list[Mailbox] = []
        self._thread: threading.Thread | None = None
        self._num_users = 0
        self._stopping = self._draining = False
        self._failures = 0
        self._busy_since: float | None = None  # since when the thread has been in one step
        self._mean_seconds = 1.0  # of a request, moving
        self._engine_lock = threading.Lock()  # held while the engine computes
        self._stats: EngineStats = engine.stats()
        self._of_engine[id(engine)] = self

    @classmethod
    def of(cls, engine: Any, max_waiting: int | None = None) -> EngineThread:
        """The engine's thread, made if it has none: two threads would corrupt it."""
        found = cls._of_engine.get(id(engine))
        if found is None:
            return cls(engine) if max_waiting is None else cls(engine, max_waiting)
        if max_waiting is not None:
            found.max_in_flight = found.max_num_seqs + max_waiting
        return found

    async def start(self) -> None:
        with self._changed:
            self._num_users += 1
            if self._thread is not None and self._thread.is_alive():
                return
            self._stopping = self._draining = False
            self._failures = 0
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        atexit.register(self._stop)  # a daemon thread inside torch would crash the interpreter's end

    async def stream(
        self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool = True
    ) -> AsyncIterator[RequestOutput]:
        stream = Mailbox(request_id, prompt, params, intermediate)
        self._accept(stream)
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finished:
                    return
        finally:
            self._leave(stream)

    def alive(self) -> bool:
        busy_since = self._busy_since
        hung = busy_since is not None and time.monotonic() - busy_since > self.stall_seconds
        return self._thread is not None and self._thread.is_alive() and not hung

    def ready(self) -> bool:
        return self.alive() and not self._draining

    def stats(self) -> EngineStats:
        """Of this moment, or of the end of the last step while the next one computes."""
        if self._engine_lock.acquire(blocking=False):
            try:
                self._stats = self.engine.stats()
            finally:
                self._engine_lock.release()
        stats, arrived = self._stats, len(self._arrived)
        return replace(stats, num_requests_waiting=stats.num_requests_waiting + arrived) if arrived else stats

    async def shutdown(self, drain_seconds: float) -> None:
        with self._changed:
            self._num_users = max(0, self._num_users - 1)
            if self._num_users:
                return
            self._draining = True
        await asyncio.to_thread(self._stop, drain_seconds)

    # Called in the event loop

    def _accept(self, stream: Mailbox) -> None:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                raise Unavailable("the engine is not running")
            if self._draining:
                raise Unavailable("the server is shutting down")
            if self.max_in_flight is not None and len(self._streams) >= self.max_in_flight:
                raise Overloaded(
                    f"{len(self._streams)} requests are running or waiting, which is the limit", self._retry_after()
                )
            if stream.request_id in self._streams:
                raise ValueError(f"request_id must be new; {stream.request_id!r} is not finished")
            self._streams[stream.request_id] = stream
            self._arrived.append(stream)
            self._changed.notify_all()

    def _leave(self, stream: Mailbox) -> None:
        if stream.done:
            return
        with self._changed:
            if self._streams.get(stream.request_id) is stream:
                self._left.append(stream)
                self._changed.notify_all()

    def _retry_after(self) -> float:
        """Until one of those that run is likely to be through."""
        return float(min(60, max(1, math.ceil(self._mean_seconds / self.max_num_seqs))))

    # Called in the engine's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._busy_since = time.monotonic()
                with self._engine_lock:
                    self._deliver(self._admit())
                    deliveries = self._step() if self.engine.has_unfinished else []
                    self._stats = self.engine.stats()
                self._busy_since = None
                self._deliver(deliveries)
                if self._failures >= _FAILURES_TO_DIE:
                    break
        except BaseException:
            logger.exception("the engine's thread ended")
        finally:
            self._busy_since = None
            with self._changed:
                left = list(self._streams.values())
            self._deliver([(stream, self._aborted(stream)) for stream in left])

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(self._has_work)
            return not self._stopping

    def _has_work(self) -> bool:
        """Whose requests the engine has matters: with none of ours its owner may call `generate` meanwhile."""
        own = bool(self._streams) and self.engine.has_unfinished
        return bool(self._arrived or self._left or self._stopping or own)

    def _admit(self) -> list[Delivery]:
        """Tell the engine who came and who left."""
        with self._changed:
            arrived, self._arrived = self._arrived, []
            left, self._left = self._left, []
        deliveries: list[Delivery] = []
        for stream in arrived:
            try:
                self.engine.add_request(stream.prompt, stream.params, stream.request_id)
            except Exception as error:
                if not isinstance(error, ValueError):
                    logger.exception("request %s could not be added", stream.request_id)
                    error = GenerationFailed("the engine could not take the request")
                deliveries.append((stream, error))
            else:
                deliveries.append((stream, accepted(stream)))
        for stream in left:
            if self._streams.get(stream.request_id) is stream:  # not finished by the step that it left in
                self.engine.abort(stream.request_id)
                with self._changed:
                    del self._streams[stream.request_id]
                    self._changed.notify_all()
        return deliveries

    def _step(self) -> list[Delivery]:
        try:
            outputs = self.engine.step()
        except Exception:
            # the engine has aborted all that it had, and can be used again
            self._failures += 1
            logger.exception("a step of the engine failed (%d in a row)", self._failures)
            with self._changed:
                lost = [stream for stream in self._streams.values() if stream not in self._arrived]
            return [(stream, GenerationFailed("the engine failed while it worked on the request")) for stream in lost]
        if outputs:
            self._failures = 0
        return [(stream, output) for output in outputs if (stream := self._streams.get(output.request_id)) is not None]

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """To each event loop in one call, whatever the number of requests."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = defaultdict(list)
        finished = []
        for stream, result in deliveries:
            last = isinstance(result, Exception) or result.finished
            if last:
                finished.append((stream, result))
            if last or stream.intermediate:
                by_loop[stream.loop].append((stream, result))
        if finished:
            with self._changed:
                for stream, result in finished:
                    self._streams.pop(stream.request_id, None)
                    if isinstance(result, RequestOutput):
                        self._mean_seconds += 0.1 * (time.monotonic() - result.times.arrival - self._mean_seconds)
                self._changed.notify_all()
        for loop, part in by_loop.items():
            try:
                loop.call_soon_threadsafe(hand_over, part)
            except RuntimeError:  # the loop is closed, its readers are gone
                for stream, _ in part:
                    self._leave(stream)

    def _aborted(self, stream: Mailbox) -> RequestOutput | Exception:
        with self._engine_lock:
            try:
                output = self.engine.abort(stream.request_id)
            except Exception:
                output = None
        return output or Unavailable("the server shut down before the request was through")

    def _stop(self, drain_seconds: float = 0.0) -> None:
        atexit.unregister(self._stop)
        with self._changed:
            self._draining = True
            if drain_seconds > 0:
                self._changed.wait_for(lambda: not self._streams, drain_seconds)
            self._stopping = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                logger.error("the engine's thread did not end within %.0f s", _JOIN_SECONDS)


def as_backend(engine: Any, max_waiting: int | None = None) -> Backend:
    """A `Backend` as it is; an `LLMEngine` with a thread of its own, always the same one for the same engine.

    max_waiting: requests that may wait beside those that run; None: 64. For an engine only.

    Raises:
        ValueError: it is neither.
    """
    if all(callable(getattr(engine, name, None)) for name in ("stream", "start", "shutdown", "alive", "ready")):
        return engine
    if all(callable(getattr(engine, name, None)) for name in ("add_request", "step", "abort")):
        from labsupport.serving.engine_thread import EngineThread

        return EngineThread.of(engine, max_waiting)
    raise ValueError(f"engine must be an LLMEngine or a serving Backend; got {type(engine).__name__}")
