"""Between the grader and a sandbox: starts the process inside, watches it, ends it, and cleans up after it.

One supervisor is forked from the warm process for each run. It is trusted, but knows no secret: neither the seed nor
any reference answer. It forwards the frames (`kernel.FRAME`) from inside to the grader, within limits on their number
and length, and finally reports in a frame of its own how the run ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from labsupport.grading.sandbox import kernel, landlock, linux, namespaces
from labsupport.grading.sandbox.limits import Limits, Place, limit_resources
from labsupport.grading.sandbox.processes import (
    anonymous_bytes,
    descendants,
    disk_bytes,
    end_all,
    processor_seconds,
    remove,
)

FORWARDED = {kernel.CELL, kernel.CALLING, kernel.STARTED, kernel.VALUES, kernel.NO_VALUES, kernel.DONE}
MAX_FRAMES = 2000
POLL_SECONDS = 0.05
LAST_WORDS_SECONDS = 0.3  # for a process that took too long to say what it was doing


def supervise(level: str, limits: Limits, place: Place, report: int, run: Callable[[int], None]) -> NoReturn:
    """Have ``run(results)`` called inside, and write frames and a final report to the file descriptor ``report``."""
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the `finally` of watch
    if sys.platform == "linux":
        linux.die_with_parent(signal.SIGTERM)
        linux.adopt_orphans()
    results, results_inside = os.pipe()
    output, output_inside = os.pipe()
    asked, ask = os.pipe()
    admitted, admit = os.pipe()
    if level == "namespaces":
        namespaces.prepare()
    before = anonymous_bytes(os.getpid())
    child = os.fork()
    if child == 0:
        _go_inside(level, limits, place, run, results_inside, output_inside, ask, admitted)
    for descriptor in (results_inside, output_inside, ask, admitted):
        os.close(descriptor)
    watch = _Watch(child, level, limits, place, report, before)
    try:
        if level == "namespaces" and os.geteuid() == 0 and os.read(asked, 1):
            namespaces.admit(child, _layout(limits, place))
            os.write(admit, b"!")
        watch.follow(results, output)
    except BrokenPipeError:  # the grader has stopped reading
        pass
    except SystemExit:  # the warm process has ended
        watch.ended = "interrupted"
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        watch.end()
        os._exit(0)


def _go_inside(
    level: str,
    limits: Limits,
    place: Place,
    run: Callable[[int], None],
    results: int,
    output: int,
    ask: int,
    admitted: int,
) -> NoReturn:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _volunteer_when_memory_is_short()
        if level == "namespaces":
            namespaces.enter(_layout(limits, place), ask, admitted)
        else:
            os.setsid()
            if level == "landlock":
                landlock.enter(
                    (*namespaces.SYSTEM_FOLDERS, *place.readable), place.hidden, place.scratch, place.outside_uid
                )
        if sys.platform == "linux":
            linux.die_with_parent(signal.SIGKILL)
        home = namespaces.HOME if level == "namespaces" else place.scratch
        os.chdir(home)
        os.environ.update(
            HOME=home, MPLCONFIGDIR=f"{home}/.matplotlib", TMPDIR="/tmp" if level == "namespaces" else home
        )
        limit_resources(limits, level)
        nothing = os.open("/dev/null", os.O_RDWR)
        for number, descriptor in enumerate((nothing, output, output)):
            os.dup2(descriptor, number)
        kernel.send(results, kernel.ENTERED)
    except BaseException as error:
        kernel.send(results, kernel.FAILED, 0, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    try:
        run(results)
    finally:
        os._exit(0)


def _volunteer_when_memory_is_short() -> None:
    """If the whole machine runs out of memory, let the kernel end this process, not the grader."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _layout(limits: Limits, place: Place) -> namespaces.Layout:
    return namespaces.Layout(place.mount_point, place.readable, place.hidden, limits.disk_bytes, place.outside_uid)


class _Watch:
    """Follows one process inside until it ends or has to be ended."""

    def __init__(self, child: int, level: str, limits: Limits, place: Place, report: int, before: int) -> None:
        self.child, self.level, self.limits, self.place, self.report = child, level, limits, place, report
        self.before = before
        self.entered = False
        self.ended = ""  # why it was ended, "" if it ended by itself
        self.seconds = self.step_seconds = 0.0  # by the clock
        self.cpu = self.cpu_before_step = 0.0
        self.printed = self.frames = self.passed_on = self.peak = 0
        self.pending = b""

    def follow(self, results: int, output: int) -> None:
        open_pipes = {results, output}
        last = time.monotonic()
        looked = last
        while open_pipes and not self.ended:
            ready, _, _ = select.select(list(open_pipes), [], [], POLL_SECONDS)
            now = time.monotonic()
            passed = min(now - last, 1.0)  # time in which the machine was suspended is not the submission's
            self.seconds, self.step_seconds, last = self.seconds + passed, self.step_seconds + passed, now
            for pipe in ready:
                data = os.read(pipe, 1 << 20)
                if not data:
                    open_pipes.discard(pipe)
                elif pipe == results:
                    self._take(data)
                else:
                    self.printed += len(data)
            if now - looked >= POLL_SECONDS:
                looked = now
                self._look()
                if not ready and self._has_exited():
                    break  # something outside its process tree holds a pipe open
            self._judge()
        if self.ended in ("timeout", "asleep"):
            self._ask_what_it_does(results)

    def _take(self, data: bytes) -> None:
        """Forward complete frames. An impossible frame ends the run, and what follows it is ignored."""
        self.pending += data
        while len(self.pending) >= kernel.FRAME.size and not self.ended:
            kind, _, length = kernel.FRAME.unpack_from(self.pending)
            if kind == kernel.ENTERED and not self.entered:
                self.entered = True
            elif length > self.limits.result_bytes or kind not in (FORWARDED if self.entered else {kernel.FAILED}):
                self.ended = "result"
                return
            size = kernel.FRAME.size + length
            if len(self.pending) < size:
                return
            frame, self.pending = self.pending[:size], self.pending[size:]
            self.frames, self.step_seconds, self.cpu_before_step = self.frames + 1, 0.0, self.cpu
            self.passed_on += size
            _write(self.report, frame)

    def _judge(self) -> None:
        limits = self.limits
        if self.cpu > limits.seconds or self.cpu - self.cpu_before_step > limits.seconds_a_step:
            self.ended = "timeout"
        elif self.seconds > limits.wall * limits.seconds or self.step_seconds > limits.wall * limits.seconds_a_step:
            self.ended = "asleep"
        elif self.printed > limits.output_bytes:
            self.ended = "output"
        elif self.frames > MAX_FRAMES or self.passed_on > 16 * limits.result_bytes:
            self.ended = "result"
        elif self.peak > limits.memory_bytes:
            self.ended = "memory"

    def _look(self) -> None:
        """Count the processes, their time, the memory that they do not share with the warm process, what they wrote."""
        inside = descendants(self.child)
        self.cpu = max(self.cpu, processor_seconds(inside))
        self.peak = max(self.peak, sum(max(0, anonymous_bytes(pid) - self.before) for pid in inside))
        if len(inside) > self.limits.processes:
            self.ended = "processes"
        if self.place.scratch and disk_bytes(self.place.scratch) > self.limits.disk_bytes:
            self.ended = "disk"

    def _ask_what_it_does(self, results: int) -> None:
        """For the message: which call it was that took too long. Code that Python cannot interrupt does not answer."""
        ended, self.ended = self.ended, ""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGUSR1)
            if select.select([results], [], [], LAST_WORDS_SECONDS)[0]:
                self._take(os.read(results, 1 << 16))
        self.ended = ended

    def _has_exited(self) -> bool:
        try:
            state = os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return state is not None

    def end(self) -> None:
        """End every process, remove every file, and report."""
        finished = self._has_exited()
        if not finished:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
        _, status, usage = os.wait4(self.child, 0)
        if self.level != "namespaces":
            end_all(self.child)
            if self.place.scratch:
                remove(self.place.scratch)
        own = os.times()
        code = os.waitstatus_to_exitcode(status)
        if not self.ended and code == -signal.SIGXCPU:
            self.ended = "timeout"
        found = {
            "ended": self.ended,
            "exit_code": code,
            "seconds": self.seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime + own.user + own.system,
            "memory_bytes": max(self.peak, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)),
            "printed_bytes": self.printed,
        }
        payload = json.dumps(found).encode()
        with contextlib.suppress(BrokenPipeError):
            _write(self.report, kernel.FRAME.pack(kernel.REPORT, 0, len(payload)) + payload)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
