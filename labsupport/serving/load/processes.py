"""A load test from several processes at once, for rates that one event loop cannot send.

The plan is dealt out like cards. All processes connect first, then begin at the same moment of the machine's clock, so
their results belong to one test.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from labsupport.serving.load.tester import Result, run_load
from labsupport.serving.load.workload import Planned

_REQUESTS, _TOKENS = 100, 2000  # a second, that one process sends and reads without falling behind
_UNTIL_START = 0.2  # seconds, for all to hear of it


def processes_for(plan: Sequence[Planned]) -> int:
    """How many an open loop needs, at most one a core; 1 for a closed one, where nothing is due."""
    span = max((each.at or 0.0) for each in plan)
    if span <= 0:
        return 1
    tokens = sum(each.max_tokens for each in plan)
    needed = math.ceil(max(len(plan) / span / _REQUESTS, tokens / span / _TOKENS))
    return max(1, min(needed, os.cpu_count() or 1, len(plan)))


def run_in_processes(
    url: str, plan: Sequence[Planned], processes: int, concurrency: int | None = None, **options: Any
) -> list[Result]:
    """`run_load` in ``processes`` processes, which share the plan and the ``concurrency``. Results in the plan's order.

    Raises:
        ValueError: as `run_load`, or there are more processes than requests or connections.
        RuntimeError: a process died.
    """
    most = min(len(plan), concurrency or len(plan))
    if not 1 <= processes <= most:
        raise ValueError(f"processes must be from 1 to {most}, as there is no more to share; got {processes}")
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe()
            share = None if concurrency is None else len(range(number, concurrency, processes))
            work = (theirs, url, list(plan[number::processes]), share, options)
            workers.append(context.Process(target=_work, args=work, daemon=True))
            workers[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            _receive(pipe)  # it is ready
        start = time.monotonic() + _UNTIL_START
        for pipe in pipes:
            pipe.send(start)
        results: list[Result | None] = [None] * len(plan)
        for number, pipe in enumerate(pipes):
            results[number::processes] = _receive(pipe)
        return results  # type: ignore[return-value]
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _receive(pipe: Connection) -> Any:
    try:
        kind, value = pipe.recv()
    except EOFError:
        raise RuntimeError("a process of the load test died") from None
    if kind == "error":
        raise ValueError(value)
    return value


def _work(pipe: Connection, url: str, plan: list[Planned], concurrency: int | None, options: dict[str, Any]) -> None:
    def begin() -> float:
        pipe.send(("ready", None))
        return float(pipe.recv())

    try:
        pipe.send(("results", asyncio.run(run_load(url, plan, concurrency, begin=begin, **options))))
    except ValueError as error:
        pipe.send(("error", str(error)))
