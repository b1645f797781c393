"""Engines and servers that the serving tests share."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

import uvicorn
from fastapi import FastAPI

from labsupport.inference import LLMEngine
from labsupport.lm import LanguageModel, load_lm

PATIENCE = 60.0  # seconds: the machine may pause this process; only a hang takes that long


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return load_lm("tiny", verbose=False)


@pytest.fixture
def engine(tiny: LanguageModel) -> LLMEngine:
    return LLMEngine(tiny, max_num_seqs=4, num_blocks=256)


class StepByStep(LLMEngine):
    """An engine whose steps wait for a permit, so a test decides when it computes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.permits = threading.Semaphore(0)
        self.free = False
        self.entered = threading.Event()  # a step has begun

    def step(self) -> Any:
        self.entered.set()
        assert self.free or self.permits.acquire(timeout=PATIENCE), "nobody let the engine step"
        return super().step()

    def run_free(self) -> None:
        self.free = True
        self.permits.release()


@pytest.fixture
def paused(tiny: LanguageModel) -> Iterator[StepByStep]:
    engine = StepByStep(tiny, max_num_seqs=2, num_blocks=128)
    yield engine
    engine.run_free()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited too long until {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Run the app with a real uvicorn in a thread, on a free port. Yields its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=PATIENCE)  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started or not thread.is_alive(), "the server runs")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def serve() -> Callable[[FastAPI], contextlib.AbstractContextManager[str]]:
    return serving


@pytest.fixture
def until() -> Callable[[Callable[[], bool], str], None]:
    return wait_until


def nothing_held(engine: LLMEngine) -> bool:
    engine.scheduler.check_integrity()
    return not engine.scheduler.requests and engine.cache.usage()["used_blocks"] == 0


@pytest.fixture
def released() -> Callable[[LLMEngine], bool]:
    return nothing_held
