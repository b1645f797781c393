"""Does a sandbox hold? Code that looks for a way out, and the check from outside whether it found one."""

from __future__ import annotations

import os
from pathlib import Path

from labsupport.grading.sandbox.outcome import Outcome, SandboxError

SECRET = "secret"


def probe_cell(folder: Path) -> str:
    """Source that raises if a way out is open, or if ordinary code does not run. ``folder`` must be empty."""
    secret = folder / "secret.txt"
    secret.write_text(SECRET, encoding="ascii")
    secret.chmod(0o666)
    folder.chmod(0o777)  # only the sandbox protects it
    return PROBE.format(secret=str(secret), pid=os.getpid())


def check_outside(folder: Path, outcome: Outcome) -> None:
    """Raise `SandboxError` unless the probe ran to its end and left ``folder`` as it was."""
    if not outcome.done or outcome.cells.get(0, "?") is not None:
        raise SandboxError(outcome.cells.get(0) or f"the probe ended: {outcome}")
    if [path.read_text(encoding="ascii") for path in folder.iterdir()] != [SECRET]:
        raise SandboxError("the probe could write outside")


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
