"""The whole stack on one machine: the programs of a Procfile, started in order, watched, and stopped in order.

    load balancer (nginx) -> two API servers -> queue (Redis) -> two engine workers;  Prometheus scrapes them

A program that ends is restarted, after a pause that grows if it keeps ending. SIGINT or SIGTERM stops the stack, once
running requests are finished. Programs are ended one by one, by the process ids that were recorded at their start.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from labsupport.files import write_atomically
from labsupport.serving.stack.configuration import read_procfile

_LONGEST_PAUSE = 5.0
_LIVED = 10.0  # seconds after which an end no longer counts as a failure to start
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


async def run_stack(
    run: Path, variables: Mapping[str, str], drain_seconds: float, ready: Callable[[str], object],
    start_seconds: float = 180.0, say: Callable[[str], object] = print,
) -> None:  # fmt: skip
    """Run until SIGINT or SIGTERM.

    Args:
        run: the folder that `prepare` has filled, with ``variables`` as its result.
        drain_seconds: how long running requests may take to finish at the end.
        ready: called with the address once requests are answered.
        start_seconds: how long the start may take.
        say: shows a line of a program's output.

    Raises:
        RuntimeError: a program does not start.
    """
    environment = {**os.environ, "LABSUPPORT_REDIS_URL": variables["REDIS_URL"], "PYTHONUNBUFFERED": "1"}
    stack = Stack(read_procfile((run / "Procfile").read_text(encoding="utf-8"), variables), run, environment, say)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    address = f"http://127.0.0.1:{variables['PORT']}"
    try:
        starting = asyncio.ensure_future(stack.start(address, variables, start_seconds))
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            ready(address)
            await stopped.wait()
        else:
            starting.cancel()
    finally:
        await stack.stop(drain_seconds)


class Stack:
    """The programs and their processes. The file ``run/NAME.pid`` holds each process id."""

    def __init__(
        self, programs: Mapping[str, Sequence[str]], run: Path, environment: Mapping[str, str],
        say: Callable[[str], object] = print,
    ) -> None:  # fmt: skip
        self.programs, self.run, self.environment, self.say = programs, run, environment, say
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._started = self._stopping = False

    async def start(self, address: str, variables: Mapping[str, str], seconds: float) -> None:
        """Start all programs in order, and return when requests will be answered.

        Raises:
            RuntimeError: a program ends at once, or the start takes longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        for name in self.programs:
            self._keepers[name] = asyncio.ensure_future(self._keep(name))
            if name == "redis":
                await self._until(lambda: _listens(variables["REDIS_PORT"]), "redis does not listen", deadline)
        for variable in ("API_1_PORT", "API_2_PORT", "PORT"):
            url = f"http://127.0.0.1:{variables[variable]}/ready"
            await self._until(lambda url=url: _answers(url), f"{url} is not ready", deadline)  # type: ignore[misc]
        self._started = True

    async def stop(self, drain_seconds: float) -> None:
        """Stop programs from last to first; those whose names differ only in their number, together."""
        self._stopping = True
        groups = [list(names) for _, names in groupby(reversed(list(self._keepers)), key=_kind)]
        for names in groups:
            await asyncio.gather(*(self._end(name, drain_seconds + 10) for name in names))
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    async def _keep(self, name: str) -> None:
        """Run a program, and restart it if it ends."""
        pause = 0.2
        while not self._stopping:
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *self.programs[name], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT, env=self.environment, start_new_session=True, limit=2**20,
                preexec_fn=_die_with_parent if _LIBC else None,
            )  # fmt: skip
            self.processes[name] = process
            write_atomically(self.run / f"{name}.pid", f"{process.pid}\n", private=True)
            await self._show(name, process)
            status = await process.wait()
            (self.run / f"{name}.pid").unlink(missing_ok=True)
            if self._stopping:
                return
            self.say(f"{name} ended with status {status}")
            if not self._started and time.monotonic() - began < _LIVED:
                raise RuntimeError(f"{name} does not start: status {status}, see its last lines above")
            pause = 0.2 if time.monotonic() - began > _LIVED else min(2 * pause, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _show(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than the limit
                continue
            if not line:
                return
            self.say(f"{name:10} | {line.decode(errors='replace').rstrip()}")

    async def _until(self, condition: Callable[[], bool], otherwise: str, deadline: float) -> None:
        while not await asyncio.to_thread(condition):
            for keeper in self._keepers.values():
                if keeper.done():
                    keeper.result()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{otherwise}, and time is up")
            await asyncio.sleep(0.1)

    async def _end(self, name: str, seconds: float) -> None:
        process, keeper = self.processes.get(name), self._keepers[name]
        if process is not None and process.returncode is None:
            # nginx cuts connections on SIGTERM, and finishes them on SIGQUIT
            process.send_signal(signal.SIGQUIT if name == "nginx" else signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), seconds)
            except TimeoutError:
                self.say(f"{name} did not end within {seconds:.0f} s and is killed")
                process.kill()
        try:
            await asyncio.wait_for(asyncio.shield(keeper), 10)
        except TimeoutError:
            keeper.cancel()
        except Exception:
            pass  # `start` has reported it


def _kind(name: str) -> str:
    return re.sub(r"-\d+$", "", name)


def _die_with_parent() -> None:
    """Linux: if this process is killed, its programs get SIGTERM."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _listens(port: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
