"""The grader's side of the sandbox: keeps a warm process (`zygote`), requests runs from it, collects the results."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

from labsupport.grading.sandbox import kernel
from labsupport.grading.sandbox.limits import LEVELS, Limits
from labsupport.grading.sandbox.outcome import Outcome, SandboxError, outcome_of, read_frames, wait_readable
from labsupport.grading.sandbox.package import build_package
from labsupport.grading.sandbox.probe import check_outside, probe_cell
from labsupport.grading.sandbox.visitor import Visit, Visitor

START_SECONDS = 300.0  # importing torch from a cold disk
GRACE_SECONDS = 60.0  # for the supervisor, beyond the limit that it enforces itself
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")


class WarmProcess:
    """Runs code in sandboxes of one level, from any number of threads. Use it as a context manager, or `close` it.

    Args:
        hidden: folders that must not be visible inside, even if they lie in one that is.
        unsafe_no_sandbox: run without isolation, with limits only, if no level works here.
        level: use this level without trying it. For tests.

    Raises:
        SandboxError: no level of isolation works here; says what was tried and why it failed.
    """

    def __init__(self, hidden: Sequence[str] = (), unsafe_no_sandbox: bool = False, level: str | None = None) -> None:
        if level not in (*LEVELS, None):
            raise ValueError(f"level must be one of {LEVELS} or None, got {level!r}")
        self._folder = Path(tempfile.mkdtemp(prefix="labsupport-sandbox-"))
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._folder.chmod(0o755)  # mkdtemp's folders are closed to the user that runs inside
            build_package(self._folder / "package")
            (self._folder / "root").mkdir()
            (self._folder / "scratch").mkdir()
            home, package = str(Path.home()), str(Path(__file__).parents[2])
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
        visits: Mapping[int, Visit] | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> Outcome:
        """Run ``cells`` (id, source), then the checks with these inputs (index -> encoded, without the private ones).

        Args:
            visits: for the checks that are visited, who talks to the code inside.
            watch: called with the index of each check when it begins; untrusted code says which.

        Raises:
            SandboxError: the sandbox failed.
        """
        payload = kernel.write_payload(list(cells), exercise, inputs or {})
        try:
            return self._run(payload, self.level, limits or Limits(), visits, watch)
        except _WarmProcessDied:
            with self._lock:
                if self._closed:
                    raise
                if self._process is None or self._process.poll() is not None:
                    self._start()
            return self._run(payload, self.level, limits or Limits(), visits, watch)

    def close(self) -> None:
        """End the warm process and everything it started, and remove its files."""
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
        command = [sys.executable, "-P", "-m", "labsupport.grading.sandbox.zygote", str(theirs.fileno())]
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
        if not wait_readable(self._control.fileno(), START_SECONDS) or self._control.recv(16) != b"ready":
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
        """Try a level (default: the one chosen) with code that looks for a way out and with ordinary code.

        Raises:
            SandboxError: the level does not work here, or does not hold.
        """
        with tempfile.TemporaryDirectory(prefix="labsupport-probe-") as folder:
            payload = kernel.write_payload([("probe", probe_cell(Path(folder)))], "", {})
            check_outside(Path(folder), self._run(payload, level or self.level, Limits()))

    def _run(
        self,
        payload: bytes,
        level: str,
        limits: Limits,
        visits: Mapping[int, Visit] | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> Outcome:
        scratch = ""
        if level != "namespaces":
            scratch = tempfile.mkdtemp(dir=self._folder / "scratch")
        request = {"level": level, "limits": asdict(limits), "scratch": scratch}
        report, theirs = os.pipe()
        visitor = Visitor(visits) if visits else None
        try:
            with tempfile.TemporaryFile() as file:
                file.write(payload)
                file.flush()
                try:
                    with self._lock:
                        passed = [theirs, file.fileno(), *([visitor.theirs.fileno()] if visitor else [])]
                        socket.send_fds(self._control, [json.dumps(request).encode()], passed)
                except OSError as error:
                    raise _WarmProcessDied(str(error)) from error
                finally:
                    os.close(theirs)
                    if visitor:
                        visitor.begin()
            frames = read_frames(report, limits.seconds * limits.wall + GRACE_SECONDS, watch)
        finally:
            os.close(report)
            if visitor:
                visitor.end()
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
        if not frames or frames[-1][0] != kernel.REPORT:
            if self._process is None or self._process.poll() is not None:
                raise _WarmProcessDied(self._errors())
            raise SandboxError(f"a supervisor ended without a report: {self._errors()}")
        outcome = outcome_of(frames)
        if visitor:  # what was written down outside, and nothing that was sent in its place
            others = {index: data for index, data in outcome.values.items() if index not in visitor.visits}
            outcome = replace(outcome, values=others | visitor.values)
        if outcome.ended == "interrupted":
            raise _WarmProcessDied("the warm process ended in the middle of a run")
        return outcome

    def _errors(self) -> str:
        try:
            return (self._folder / "errors.txt").read_text(errors="replace").strip()[-800:]
        except OSError:
            return ""


class _WarmProcessDied(SandboxError):
    pass
