"""The whole stack on one machine: the programs of a Procfile, started in order, watched, and stopped in order.

    load balancer (nginx) -> two API servers -> queue (Redis) -> two engine workers;  Prometheus asks them all

A program that ends is started again, after a pause that grows while it goes on ending. The stack ends on SIGINT or
SIGTERM: what runs is finished first. Programs are ended one by one by the process ids that this process gave out.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import string
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

TEMPLATES = ("nginx.conf", "redis.conf", "prometheus.yml")
PORTS = ("PORT", "API_1_PORT", "API_2_PORT", "WORKER_1_PORT", "WORKER_2_PORT", "REDIS_PORT", "PROMETHEUS_PORT")
PROGRAMS = {"REDIS_SERVER": "redis-server", "NGINX": "nginx", "PROMETHEUS": "prometheus"}
PACKAGES = {"redis-server": "redis-server", "nginx": "nginx-light", "prometheus": "prometheus"}

_PLACE = re.compile("@([A-Z0-9_]+)@")
_LONGEST_PAUSE = 5.0
_LIVED = 10.0  # seconds after which an end is no longer a failure to start
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


async def run_stack(
    run: Path, variables: Mapping[str, str], drain_seconds: float, ready: Callable[[str], object],
    start_seconds: float = 180.0, say: Callable[[str], object] = print,
) -> None:  # fmt: skip
    """Until SIGINT or SIGTERM. ``run`` is what `prepare` made; ``ready`` gets the address once requests are answered.

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


def prepare(run: Path, deploy: Path, port: int, settings: Mapping[str, str]) -> dict[str, str]:
    """Fill in the templates of ``deploy`` under ``run``. Returns the variables for the Procfile.

    ``port``: the balancer's, those of the others follow it; 0: all are free ones.

    Raises:
        ValueError: a program is not installed, a file is missing, a port is taken.
    """
    run, variables = run.absolute(), dict(settings)
    if any(character.isspace() or character in "\"'\\;{}@" for character in str(run)):
        raise ValueError(f"the folder of the stack must have no spaces or quotes in its name; got {run}")
    variables |= {"RUN": str(run), "LABSUPPORT": f"{shlex.quote(sys.executable)} -m labsupport.cli"}
    variables |= find_programs()
    variables |= dict(zip(PORTS, map(str, choose_ports(port, len(PORTS))), strict=True))
    password = secrets.token_urlsafe(24)
    variables |= {"REDIS_PASSWORD": password, "REDIS_URL": f"redis://:{password}@127.0.0.1:{variables['REDIS_PORT']}/0"}
    for folder in (run, run / "redis", run / "nginx", run / "prometheus"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in (*TEMPLATES, "Procfile"):
        path = deploy / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: --deploy must name the folder deploy/ of the course")
        text = path.read_text(encoding="utf-8")
        if name != "Procfile":
            unknown = set(_PLACE.findall(text)) - variables.keys()
            if unknown:
                raise ValueError(f"{path} must use @NAME@ of known names; got {', '.join(sorted(unknown))}")
            text = _PLACE.sub(lambda found: variables[found[1]], text)
        write_private(run / name, text)  # the password is in one of them
    return variables


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; nobody else may read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def find_programs() -> dict[str, str]:
    """Paths of what the stack needs. Debian has some where only root's PATH leads."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = {variable: shutil.which(program, path=path) for variable, program in PROGRAMS.items()}
    missing = [PROGRAMS[variable] for variable, place in found.items() if place is None]
    if missing:
        packages = " ".join(PACKAGES[program] for program in missing)
        raise ValueError(
            f"{', '.join(missing)} must be installed. On Debian and Ubuntu: sudo apt-get install {packages}; then, as "
            f"the stack starts its own: sudo systemctl disable --now {' '.join(missing)}"
        )
    return {variable: str(place) for variable, place in found.items()}


def choose_ports(first: int, count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on: from ``first`` on, or any if it is 0.

    Raises:
        ValueError: one is taken.
    """
    ports, sockets = [], []
    try:
        for offset in range(count):
            listener = socket.socket()
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", first + offset if first else 0))
            except (OSError, OverflowError) as error:
                raise ValueError(f"port {first + offset} must be free; {error}. --port 0 takes free ones") from None
            ports.append(listener.getsockname()[1])
    finally:
        for listener in sockets:
            listener.close()
    return ports


def read_procfile(text: str, variables: Mapping[str, str]) -> dict[str, list[str]]:
    """Name -> command, its variables filled in.

    Raises:
        ValueError: a line is no `name: command`, a name is there twice, a variable is not known.
    """
    programs: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, command = line.partition(":")
        name = name.strip()
        if not colon or not re.fullmatch(r"[\w-]+", name) or not command.strip() or name in programs:
            raise ValueError(f"Procfile, line {number}: must be `name: command`, each name once; got {line[:60]!r}")
        try:
            programs[name] = shlex.split(string.Template(command).substitute(variables))
        except (KeyError, ValueError) as error:
            raise ValueError(f"Procfile, line {number}: {error}") from None
    return programs


class Stack:
    """The programs, and who runs under which process id: ``run/NAME.pid`` says so too."""

    def __init__(
        self, programs: Mapping[str, Sequence[str]], run: Path, environment: Mapping[str, str],
        say: Callable[[str], object] = print,
    ) -> None:  # fmt: skip
        self.programs, self.run, self.environment, self.say = programs, run, environment, say
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._started = self._stopping = False

    async def start(self, address: str, variables: Mapping[str, str], seconds: float) -> None:
        """Start all, in order; return when requests would be answered.

        Raises:
            RuntimeError: a program ends at once, or it takes longer than ``seconds``.
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
        """From the last to the first; those whose names differ in a number only, together."""
        self._stopping = True
        groups = [list(names) for _, names in groupby(reversed(list(self._keepers)), key=_kind)]
        for names in groups:
            await asyncio.gather(*(self._end(name, drain_seconds + 10) for name in names))
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    async def _keep(self, name: str) -> None:
        """Run a program, and run it again if it ends."""
        pause = 0.2
        while not self._stopping:
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *self.programs[name], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT, env=self.environment, start_new_session=True, limit=2**20,
                preexec_fn=_die_with_parent if _LIBC else None,
            )  # fmt: skip
            self.processes[name] = process
            write_private(self.run / f"{name}.pid", f"{process.pid}\n")
            await self._show(name, process)
            status = await process.wait()
            (self.run / f"{name}.pid").unlink(missing_ok=True)
            if self._stopping:
                return
            self.say(f"{name} ended with status {status}")
            if not self._started and time.monotonic() - began < _LIVED:
                raise RuntimeError(f"{name} does not start: status {status}, its last lines are above")
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
                raise RuntimeError(f"{otherwise}, and the time is up")
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
            pass  # `start` has told of it


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
