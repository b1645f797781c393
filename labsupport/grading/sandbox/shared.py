"""One warm process per grading process: importing torch takes longer than grading a submission."""

from __future__ import annotations

import atexit
import threading

from labsupport.grading.sandbox.warm import WarmProcess

_warm: dict[tuple[tuple[str, ...], bool], WarmProcess] = {}
_warm_lock = threading.Lock()


def warm_process(hidden: tuple[str, ...] = (), unsafe_no_sandbox: bool = False) -> WarmProcess:
    """This process's warm process, started when it is first needed; it ends with this process.

    Raises:
        SandboxError: no isolation works on this machine (see `warm.WarmProcess`).
    """
    with _warm_lock:
        key = (hidden, unsafe_no_sandbox)
        if key not in _warm:
            _warm[key] = WarmProcess(hidden, unsafe_no_sandbox)
        return _warm[key]


@atexit.register
def close_warm_processes() -> None:
    """End all of them; the next job starts a new one."""
    with _warm_lock:
        while _warm:
            _warm.popitem()[1].close()
