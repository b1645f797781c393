"""Grade every mutant of an exercise's model answer, each in a process of its own, and count who survives.

A mutant is killed if a check fails with each of the seeds, or by a time limit (CPU seconds: a busy machine changes
nothing) or a memory limit. It survives if all checks pass with any of the seeds: a class is graded with one.
"""

from __future__ import annotations

import json
import linecache
import os
import resource
import runpy
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checks.mutation.operators import Mutant, mutants

from labsupport.checks import PUBLIC_SEED, exercise

SEEDS = (PUBLIC_SEED, 1, 4711)
WALL_FACTOR = 20  # the wall limit is this many times the CPU limit, plus a minute
# What they train takes seconds, and is right if it reaches an accuracy: one seed with which it does not is enough.
TRAINING = ("check_student_size", "check_student_accuracy")
MEMORY = 2 << 30  # bytes above what the parent has
CATALOGUE = runpy.run_path(str(Path(__file__).parents[1] / "catalogue" / "load.py"))


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    killed_by: str  # the first check to fail, "time", "memory" or "does not run"; "" if all pass with all seeds
    message: str = ""
    lucky: tuple[int, ...] = ()  # seeds with which all checks pass

    @property
    def key(self) -> str:
        return f"{self.mutant.operator}: {self.mutant.line}"

    @property
    def survives(self) -> bool:
        return bool(self.lucky)


def grade_mutants(name: str, workers: int = 2) -> list[Outcome]:
    """The outcome of every mutant of the model answer of exercise ``name``."""
    torch.set_num_threads(1)  # before anything is computed: a pool of threads does not survive a fork
    cells = CATALOGUE["model_answer"](name)
    checks = exercise(name).checks
    drawn = {seed: {check.name: check.inputs(seed) for check in checks} for seed in SEEDS}
    started = time.process_time()
    if _grade(cells, checks, drawn)[2] != SEEDS:
        raise ValueError(f"the model answer of {name} does not pass")
    limit = 3 + round(3 * (time.process_time() - started))
    waiting = [(mutant, cells | {cell: mutant.source}) for cell, source in cells.items() for mutant in mutants(source)]
    return list(_in_processes(waiting, checks, drawn, limit, workers))


def _grade(cells: dict[str, str], checks: Any, drawn: dict[int, Any]) -> tuple[str, str, tuple[int, ...]]:
    """The first check to fail, its message, and the seeds with which all pass."""
    namespace: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    try:
        for cell, source in cells.items():
            linecache.cache[f"<{cell}>"] = (len(source), None, source.splitlines(keepends=True), f"<{cell}>")
            exec(compile(source, f"<{cell}>", "exec", dont_inherit=True), namespace)
    except Exception as error:
        return "does not run", repr(error), ()
    failures: dict[int, tuple[str, str] | None] = {}
    for seed in SEEDS:
        failures[seed] = _first_failure(namespace, checks, drawn[seed])
        if failures[seed] and failures[seed][0] in TRAINING:  # type: ignore[index]
            break
    killed_by, message = next((failure for failure in failures.values() if failure), ("", ""))
    return killed_by, message, tuple(seed for seed, failure in failures.items() if not failure)


def _first_failure(namespace: dict[str, Any], checks: Any, drawn: dict[str, Any]) -> tuple[str, str] | None:
    for check in checks:
        verdict = check.verdict(drawn[check.name], check.observe(namespace, drawn[check.name]))
        if not verdict.passed:
            return check.name, verdict.message
    return None


def _in_processes(waiting: list[Any], checks: Any, drawn: Any, limit: int, workers: int) -> Iterator[Outcome]:
    running: dict[int, tuple[int, Mutant, float, bytes]] = {}  # pipe -> process, mutant, latest end, what it wrote
    waiting = waiting[::-1]
    while waiting or running:
        while waiting and len(running) < workers:
            mutant, cells = waiting.pop()
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                _child(write, limit, cells, checks, drawn)
            os.close(write)
            running[read] = (child, mutant, time.monotonic() + 60 + WALL_FACTOR * limit, b"")
        ready, _, _ = select.select(list(running), [], [], 1.0)
        for pipe in list(running):
            child, mutant, end, text = running[pipe]
            if pipe in ready:
                piece = os.read(pipe, 1 << 16)
                running[pipe] = (child, mutant, end, text + piece)
                if piece:
                    continue
            elif time.monotonic() < end:
                continue
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(pipe)
            del running[pipe]
            killed_by, message, lucky = json.loads(text) if text else ("time", f"over {limit} CPU seconds", ())
            yield Outcome(mutant, killed_by, message, tuple(lucky))


def _child(write: int, limit: int, cells: dict[str, str], checks: Any, drawn: Any) -> None:
    """In the forked process; never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        with suppress(OSError, ValueError):  # not on every system
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        result: Any = _grade(cells, checks, drawn)
    except MemoryError:
        result = ("memory", "", ())
    except BaseException as error:
        result = ("does not run", repr(error), ())
    os.write(write, json.dumps(result).encode())
    os._exit(0)
