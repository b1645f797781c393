"""The grader's side of the sandbox: keeps a warm process (`zygote`), asks it for runs, collects what comes back."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from labsupport.grading import kernel
from labsupport.grading.sandbox import LEVELS, Limits
from labsupport.grading.sandbox_package import build_package

START_SECONDS = 300.0  # importing torch from a cold disk
GRACE_SECONDS = 60.0  # for the supervisor, beyond the limit that it keeps itself
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")


class SandboxError(RuntimeError):
    """The sandbox itself failed. Never raised for anything that runs inside."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. All of it but ``ended`` and the measurements was sent by untrusted code."""

    ended: str  # "" by itself; "timeout", "memory", "output", "result" or "disk": by the supervisor
    exit_code: int  # negative: the signal
    done: bool  # all cells and checks were gone through
    cells: dict[int, str | None] = field(default_factory=dict)  # position -> the error that it ended with
    values: dict[int, bytes] = field(default_factory=dict)  # index of a check -> encoded values
    failures: dict[int, str] = field(default_factory=dict)  # index of a check -> why there are no values
    started: tuple[int, ...] = ()  # checks, in order
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


class WarmProcess:
    """Runs code in sandboxes of one level, from any number of threads. Use as a context manager, or `close` it.

    Args:
        hidden: folders that must not be seen inside, even where they lie in one that is shown.
        unsafe_no_sandbox: run without isolation, limits only, and only if every level is impossible here.
        level: take this level, or fail. For tests.

    Raises:
        SandboxError: no level of isolation works here; says what was tried, and why it failed.
    """

    def __init__(self, hidden: Sequence[str] = (), unsafe_no_sandbox: bool = False, level: str | None = None) -> None:
        if level not in (*LEVELS, None):
            raise ValueError(f"level must be one of {LEVELS} or None, got {level!r}")
        self._folder = Path(tempfile.mkdtemp(prefix="labsupport-sandbox-"))
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._folder.chmod(0o755)  # mkdtemp's folders are closed to the user id that runs inside
            build_package(self._folder / "package")
            (self._folder / "root").mkdir()
            (self._folder / "scratch").mkdir()
            home, package = str(Path.home()), str(Path(__file__).parents[1])
            paths = [os.path.realpath(path) for path in (*hidden, home, package)]
            self._hidden = [path for path in paths if path != "/"]
            self._start()
            self.level = level or self._choose(unsafe_no_sandbox)
        except BaseException:
            self.close()
            raise

    def run(
        self,
        cells: Sequence[tuple[str, str]],
        exercise: str = "",
        inputs: dict[int, bytes] | None = None,
        limits: Limits | None = None,
    ) -> Outcome:
        """Run ``cells`` (id, source), then the checks with these inputs (index -> encoded, without private ones).

        Raises:
            SandboxError: the sandbox failed.
        """
        payload = kernel.write_payload(list(cells), exercise, inputs or {})
        try:
            return self._run(payload, self.level, limits or Limits())
        except _WarmProcessDied:
            with self._lock:
                if self._closed:
                    raise
                if self._process is None or self._process.poll() is not None:
                    self._start()
            return self._run(payload, self.level, limits or Limits())

    def close(self) -> None:
        """End the warm process and all that it started, and remove its files."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            self._control.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder.exists():
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {
            "PYTHONPATH": str(self._folder / "package"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONIOENCODING": "utf-8",
            "IPYTHONDIR": str(self._folder / "ipython"),
            "MPLCONFIGDIR": str(self._folder / "matplotlib"),
            "MPLBACKEND": "Agg",
        }
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-P", "-m", "labsupport.grading.zygote", str(theirs.fileno())]
        with theirs, open(self._folder / "errors.txt", "ab") as errors:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=self._folder,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        setup = {
            "folder": str(self._folder),
            "mount_point": str(self._folder / "root"),
            "package": str(self._folder / "package"),
            "hidden": self._hidden,
        }
        self._control.send(json.dumps(setup).encode())
        if not _wait(self._control.fileno(), START_SECONDS) or self._control.recv(16) != b"ready":
            raise SandboxError(f"the warm process did not start: {self._errors()}")

    def _choose(self, unsafe_no_sandbox: bool) -> str:
        tried = []
        for level in LEVELS[:-1]:
            try:
                self.probe(level)
                return level
            except SandboxError as error:
                tried.append(f"{level}: {error}")
        if unsafe_no_sandbox:
            return "none"
        raise SandboxError(
            f"no isolation works on this machine ({'; '.join(tried)}). Grade on another one, or pass "
            "--unsafe-no-sandbox if you trust every submission with your files and your network"
        )

    def probe(self, level: str | None = None) -> None:
        """Try a level (else the one chosen) with code that looks for a way out; ordinary code must run, too.

        Raises:
            SandboxError: it does not work here, or does not hold.
        """
        with tempfile.TemporaryDirectory(prefix="labsupport-probe-") as folder:
            secret = Path(folder) / "secret.txt"
            secret.write_text("secret")
            Path(folder).chmod(0o777)
            secret.chmod(0o666)
            cells = [("probe", PROBE.format(secret=str(secret), pid=os.getpid()))]
            outcome = self._run(kernel.write_payload(cells, "", {}), level or self.level, Limits())
            if not outcome.done or outcome.cells.get(0, "?") is not None:
                raise SandboxError(outcome.cells.get(0) or f"the probe ended: {outcome}")
            if secret.read_text() != "secret" or len(list(Path(folder).iterdir())) > 1:
                raise SandboxError("the probe could write outside")

    def _run(self, payload: bytes, level: str, limits: Limits) -> Outcome:
        scratch = ""
        if level != "namespaces":
            scratch = tempfile.mkdtemp(dir=self._folder / "scratch")
        request = {"level": level, "limits": asdict(limits), "scratch": scratch}
        report, theirs = os.pipe()
        try:
            with tempfile.TemporaryFile() as file:
                file.write(payload)
                file.flush()
                try:
                    with self._lock:
                        socket.send_fds(self._control, [json.dumps(request).encode()], [theirs, file.fileno()])
                except OSError as error:
                    raise _WarmProcessDied(str(error)) from error
                finally:
                    os.close(theirs)
            frames = _read_frames(report, limits.seconds * 2 + GRACE_SECONDS)
        finally:
            os.close(report)
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
        return self._outcome(frames)

    def _outcome(self, frames: list[tuple[bytes, int, bytes]]) -> Outcome:
        if not frames or frames[-1][0] != b"E":
            if self._process is None or self._process.poll() is not None:
                raise _WarmProcessDied(self._errors())
            raise SandboxError(f"a supervisor ended without a report: {self._errors()}")
        failed = [payload.decode(errors="replace") for kind, _, payload in frames if kind == kernel.FAILED]
        if failed:
            raise SandboxError(failed[0])
        found = json.loads(frames[-1][2])
        if found["ended"] == "interrupted":
            raise _WarmProcessDied("the warm process ended in the middle of a run")
        if not any(kind == kernel.ENTERED for kind, _, _ in frames):
            raise SandboxError(f"nothing came from inside: {found} {self._errors()}")
        kinds = {kind: [(i, data) for k, i, data in frames if k == kind] for kind in (b"c", b"s", b"v", b"x", b"d")}
        return Outcome(
            ended=found["ended"],
            exit_code=found["exit_code"],
            done=bool(kinds[kernel.DONE]),
            cells={i: _error(data) for i, data in kinds[kernel.CELL]},
            values=dict(kinds[kernel.VALUES]),
            failures={i: data.decode(errors="replace") for i, data in kinds[kernel.NO_VALUES]},
            started=tuple(i for i, _ in kinds[kernel.STARTED]),
            seconds=found["seconds"],
            cpu_seconds=found["cpu_seconds"],
            memory_bytes=found["memory_bytes"],
        )

    def _errors(self) -> str:
        try:
            return (self._folder / "errors.txt").read_text(errors="replace").strip()[-800:]
        except OSError:
            return ""


class _WarmProcessDied(SandboxError):
    pass


def _read_frames(pipe: int, seconds: float) -> list[tuple[bytes, int, bytes]]:
    """All frames until the supervisor closes its end. It has seen to it that they are few and short."""
    data = bytearray()
    while _wait(pipe, seconds) and (part := os.read(pipe, 1 << 20)):
        data += part
    frames, position = [], 0
    while position + kernel.FRAME.size <= len(data):
        kind, index, length = kernel.FRAME.unpack_from(data, position)
        position += kernel.FRAME.size
        frames.append((kind, index, bytes(data[position : position + length])))
        position += length
    return frames


def _wait(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read within ``seconds``, in which a suspended machine's time does not count."""
    while seconds > 0:
        start = time.monotonic()
        if select.select([descriptor], [], [], 1.0)[0]:
            return True
        seconds -= min(time.monotonic() - start, 1.0)
    return False


def _error(data: bytes) -> str | None:
    """A cell's error, which untrusted code has written."""
    try:
        text = json.loads(data)
    except (ValueError, RecursionError):
        return "?"
    return text if isinstance(text, str) or text is None else "?"


# Runs inside, before any submission: every line that begins with "must not" is a way out that has to be closed.
PROBE = """
import os, socket, subprocess, tempfile
def must_not(what, attempt):
    try:
        attempt()
    except OSError:
        return
    raise RuntimeError("a submission could " + what)
must_not("read files of others", lambda: open({secret!r}).read())
must_not("write files of others", lambda: open({secret!r}, "w"))
must_not("make files elsewhere", lambda: open({secret!r} + ".new", "w"))
def connect():
    with socket.socket() as s:
        s.settimeout(2)
        try:
            s.connect(("127.0.0.1", 9))
        except ConnectionRefusedError:  # it came as far as asking
            return
must_not("reach the network", connect)
must_not("see other processes", lambda: open("/proc/{pid}/environ").read())
with tempfile.TemporaryDirectory() as folder:
    open(os.path.join(folder, "file"), "w").write("x")
import colorsys, mailbox  # from the disk, not imported so far
subprocess.run(["true"], check=True)
"""
