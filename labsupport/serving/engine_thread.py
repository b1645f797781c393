"""The engine in a thread of its own, so that no request waits for another and nothing waits for a step.

A step of the engine takes milliseconds to seconds. If it ran in the event loop, everything else would wait for it, the
health check included. Here one thread owns the engine. Requests reach it through a list under a lock (admission.py).
What a step gave goes back to the event loop in one call for the whole step, not one per token, since every call wakes
the loop. Outputs are cumulative and only the newest of each request is kept, so a slow reader costs no memory.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, ClassVar

from labsupport.inference.request import RequestOutput
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.serving.admission import NOT_RUNNING, SHUTTING_DOWN, Admission
from labsupport.serving.backend import Backend, GenerationFailed, Unavailable
from labsupport.serving.jinja_template import template_of
from labsupport.serving.mailbox import Delivery, Mailbox, accepted, deliver, is_last

logger = logging.getLogger("labsupport.serving")

_FAILURES_TO_DIE = 3  # steps in a row that raised: a restart may help, another try will not
_JOIN_SECONDS = 30.0


class EngineThread:
    """A `Backend` over an engine of this process.

    Args:
        engine: an `LLMEngine`. While requests run, nothing else may touch it.
        max_waiting: requests accepted beyond the engine's ``max_num_seqs``; the next one is `Overloaded`.
        model_name: what clients call the model; None: the name it was loaded by.
        stall_seconds: a step that takes longer counts as hung; `alive` is False until it ends.
    """

    _of_engine: ClassVar[weakref.WeakValueDictionary[int, EngineThread]] = weakref.WeakValueDictionary()

    def __init__(
        self, engine: Any, max_waiting: int = 64, *, model_name: str | None = None, stall_seconds: float = 60.0
    ) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be 0 or more; got {max_waiting}")
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.model_name: str = model_name or engine.lm.name
        self.max_model_len: int = min(engine.max_model_len, engine.cache.num_blocks * engine.cache.block_size)
        self.template: Any = template_of(engine.lm) if getattr(engine.lm, "folder", None) else None
        self.stall_seconds = stall_seconds
        max_num_seqs: int = engine.scheduler.max_num_seqs
        self.admission = Admission(max_num_seqs, max_num_seqs + max_waiting)
        self._thread: threading.Thread | None = None
        self._num_users = 0
        self._stopping = False
        self._failures = 0
        self._busy_since: float | None = None  # since when the thread has been in one step
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
            found.admission.max_in_flight = found.admission.max_num_seqs + max_waiting
        return found

    @property
    def max_in_flight(self) -> int | None:
        return self.admission.max_in_flight

    async def start(self) -> None:
        with self.admission.changed:
            self._num_users += 1
            if self._thread is not None and self._thread.is_alive():
                return
            self._stopping = False
            self._failures = 0
            self.admission.refusal = None
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        atexit.register(self._stop)  # a daemon thread inside torch would crash the interpreter's end

    async def stream(
        self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool = True
    ) -> AsyncIterator[RequestOutput]:
        stream = Mailbox(request_id, prompt, params, intermediate)
        self.admission.accept(stream)
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finished:
                    return
        finally:
            self.admission.leave(stream)

    def alive(self) -> bool:
        busy_since = self._busy_since
        hung = busy_since is not None and time.monotonic() - busy_since > self.stall_seconds
        return self._thread is not None and self._thread.is_alive() and not hung

    def ready(self) -> bool:
        return self.alive() and self.admission.refusal is None

    def stats(self) -> EngineStats:
        """As of now, or as of the end of the last step while the next one computes."""
        if self._engine_lock.acquire(blocking=False):
            try:
                self._stats = self.engine.stats()
            finally:
                self._engine_lock.release()
        stats, arrived = self._stats, len(self.admission.arrived)
        return replace(stats, num_requests_waiting=stats.num_requests_waiting + arrived) if arrived else stats

    async def shutdown(self, drain_seconds: float) -> None:
        with self.admission.changed:
            self._num_users = max(0, self._num_users - 1)
            if self._num_users:
                return
            self.admission.refusal = SHUTTING_DOWN
        await asyncio.to_thread(self._stop, drain_seconds)

    def _stop(self, drain_seconds: float = 0.0) -> None:
        atexit.unregister(self._stop)
        changed = self.admission.changed
        with changed:
            self.admission.refusal = SHUTTING_DOWN
            if drain_seconds > 0:
                changed.wait_for(lambda: not self.admission.streams, drain_seconds)
            self._stopping = True
            changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                logger.error("the engine's thread did not end within %.0f s", _JOIN_SECONDS)

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
            left = self.admission.close(NOT_RUNNING)  # from here on no request can come in and wait forever
            self._deliver([(stream, self._aborted(stream)) for stream in left])

    def _wait_for_work(self) -> bool:
        with self.admission.changed:
            self.admission.changed.wait_for(self._has_work)
            return not self._stopping

    def _has_work(self) -> bool:
        """Only our own requests count: while there are none, the engine's owner may call `generate`."""
        own = bool(self.admission.streams) and self.engine.has_unfinished
        return bool(self.admission.arrived or self.admission.left or self._stopping or own)

    def _admit(self) -> list[Delivery]:
        """Tell the engine which requests arrived and which left."""
        arrived, left = self.admission.news()
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
            if self.admission.streams.get(stream.request_id) is stream:  # not finished by the step it left in
                self.engine.abort(stream.request_id)
                self.admission.forget(stream)
        return deliveries

    def _step(self) -> list[Delivery]:
        try:
            outputs = self.engine.step()
        except Exception:
            # the engine has aborted all its requests, and can be used again
            self._failures += 1
            logger.exception("a step of the engine failed (%d in a row)", self._failures)
            lost = self.admission.known_to_engine()
            return [(stream, GenerationFailed("the engine failed while it worked on the request")) for stream in lost]
        if outputs:
            self._failures = 0
        streams = self.admission.streams
        return [(stream, output) for output in outputs if (stream := streams.get(output.request_id)) is not None]

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """Finished requests are removed before their readers are told: after its last output, a client finds room."""
        self.admission.finish([delivery for delivery in deliveries if is_last(delivery)])
        for stream in deliver(deliveries):
            self.admission.leave(stream)

    def _aborted(self, stream: Mailbox) -> RequestOutput | Exception:
        with self._engine_lock:
            try:
                output = self.engine.abort(stream.request_id)
            except Exception:
                output = None
        return output or Unavailable("the server shut down before the request was finished")


def as_backend(engine: Any, max_waiting: int | None = None) -> Backend:
    """A `Backend` as it is; an `LLMEngine` with a thread of its own, always the same one for the same engine.

    Args:
        max_waiting: requests that may wait in addition to those that run; None: 64. For an engine only.

    Raises:
        ValueError: ``engine`` is neither.
    """
    if all(callable(getattr(engine, name, None)) for name in ("stream", "start", "shutdown", "alive", "ready")):
        return engine
    if all(callable(getattr(engine, name, None)) for name in ("add_request", "step", "abort")):
        return EngineThread.of(engine, max_waiting)
    raise ValueError(f"engine must be an LLMEngine or a serving Backend; got {type(engine).__name__}")
