"""The student's app in front of the engine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from labsupport.checks.asgi import Server
from labsupport.checks.check import Answer, Check
from labsupport.checks.plain import Plain, call
from labsupport.checks.stand_in_engine import StandInEngine

APP = "create_app"
COMPLETIONS = "/v1/completions"


class ApiCheck(Check):
    needs = (APP,)


@contextlib.contextmanager
def served(answer: Answer, engine: StandInEngine, outcome: dict[str, Plain]) -> Iterator[Server | None]:
    """The student's app in front of ``engine``, or None if it cannot be started; ``outcome`` then says why."""
    made: list[Any] = []
    maker = threading.Thread(target=lambda: made.extend(call(answer[APP], engine)))  # a thread without an event loop
    maker.start()
    maker.join()
    outcome["made"], app = made
    outcome["callable"] = callable(app)
    if not callable(app):
        yield None
        return
    try:
        with Server(app) as server:
            try:
                outcome["startup"] = server.startup_error
                yield server if server.startup_error is None else None
            finally:
                engine.open()
                outcome["overlaps"] = sorted(set(engine.overlaps))
                outcome["blocked"] = server.thread.ident in engine.threads
    finally:
        engine.close()
