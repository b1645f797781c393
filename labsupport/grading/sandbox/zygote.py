"""The warm process: imports torch, IPython and the checks once, and forks a supervisor with a sandbox for each run.

`warm` starts it with an environment that holds no secret and with the sandbox's copy of `labsupport`. It reads requests
from a socket and forks; it never opens a submission and is never told the seed. It ends when its socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import sys
from typing import Any

from labsupport.grading.sandbox import kernel
from labsupport.grading.sandbox.landlock import open_to_all
from labsupport.grading.sandbox.limits import Limits, Place, readable_folders
from labsupport.grading.sandbox.supervisor import supervise

FIRST_UID = 1_200_000_000  # above the user ids that systems and containers assign


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    setup = json.loads(control.recv(1 << 16))
    shell = warm_up()
    readable = (*readable_folders(), setup["package"])
    running: set[int] = set()  # supervisors
    signal.signal(signal.SIGCHLD, lambda *_: _reap(running, os.WNOHANG))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's to handle
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 3)
        if not message:
            break
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # the child may end before it is in `running`
        child = os.fork()
        running.add(child)
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        if child:
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        control.close()
        request = json.loads(message)
        uid = FIRST_UID + os.getpid() % 2**22  # unique as long as this process lives
        if request["level"] != "namespaces" and not all(map(open_to_all, readable)):
            uid = 0  # another user could not even read Python
        place = Place(setup["mount_point"], readable, tuple(setup["hidden"]), request["scratch"], uid)
        serve(request, place, shell, *descriptors)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    _reap(running, 0)
    shutil.rmtree(setup["folder"], ignore_errors=True)  # in case the grader was killed before it could


def _reap(running: set[int], options: int) -> None:
    """Forget supervisors that have ended; their CPU time then counts as that of this process's children."""
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, options)[0]) != 0:
            running.discard(child)


def serve(
    request: dict[str, Any], place: Place, shell: Any, report: int, payload: int, visitors: int | None = None
) -> None:
    """One run, in a process of its own."""
    limits = Limits(**request["limits"])

    def run(results: int) -> None:
        with open(payload, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read()
        # close all that was open outside: sockets, pipes, the payload with the inputs of later checks
        last = 3
        talk = os.dup(visitors) if visitors == 3 else visitors  # not to be written over
        os.dup2(results, 3, inheritable=False)
        if talk is not None:
            last = talk = os.dup2(talk, 4, inheritable=False)
        os.closerange(last + 1, 1 << 16)
        kernel.run(data, shell, 3, limits.result_bytes, talk)

    if place.scratch and os.geteuid() == 0:
        os.chown(place.scratch, place.outside_uid, place.outside_uid)
    supervise(request["level"], limits, place, report, run)


def warm_up() -> Any:
    """Import what answers use, and create the shell that all forks inherit."""
    import torch

    torch.set_num_threads(1)
    torch.nn.functional.mse_loss(torch.zeros(2), torch.ones(2))  # loads what torch imports lazily
    torch.optim.Adam(torch.nn.Linear(1, 1).parameters())  # so does the first optimizer: seconds, in each answer
    from labsupport.checks import exercise, exercises

    for name in exercises():
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            exercise(name)
    with contextlib.suppress(ImportError):
        import matplotlib.pyplot  # noqa: F401
    return kernel.make_shell()


if __name__ == "__main__":
    main()
