"""Inside the sandbox: run a notebook's cells as a kernel does, then let each check observe.

This shares a process with code that may be hostile, so nothing it says is believed: it sends values, and the grader
judges them outside. nbval remains the way in which students and CI check a notebook, but its verdict is not used for
grading: it compares what the kernel prints, and code in that kernel can print, patch or skip whatever it likes (of 15
attacks on plain nbval 11 succeeded). The checks are the same, split where a wall can stand.

A check of a program that runs (`checks.visited`) does not observe in here: the program is hosted for somebody outside,
who talks to it through a channel of its own, and whose record counts.

The cells run in an IPython shell, so that magics, `display`, `In`, top-level `await` and plots work as in a notebook.
Results are sent as frames (`FRAME`): kind, index, length, then the payload.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

from labsupport.grading.sandbox.stand_ins import forgive, stand_in_for_missing

FRAME = struct.Struct("<cIQ")
ENTERED, CELL, STARTED, VALUES, NO_VALUES, DONE, FAILED = b"i", b"c", b"s", b"v", b"x", b"d", b"!"
CALLING = b"n"  # when it is asked, before it is ended: the call of the student's code that runs now
REPORT = b"E"  # from the supervisor itself


def send(descriptor: int, kind: bytes, index: int = 0, payload: bytes = b"") -> None:
    data = memoryview(FRAME.pack(kind, index, len(payload)) + payload)
    while data:
        data = data[os.write(descriptor, data) :]


def write_payload(cells: list[tuple[str, str]], exercise: str, inputs: dict[int, bytes]) -> bytes:
    """All that a run needs. ``inputs``: index of a check -> its encoded inputs, without the private ones."""
    header = {"cells": cells, "exercise": exercise, "checks": [[index, len(data)] for index, data in inputs.items()]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(inputs.values())


def make_shell() -> Any:
    """The IPython shell, made once before anything is forked, as it takes 0.2 s."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False  # no thread, no file
    config.InteractiveShell.colors = "NoColor"
    shell: Any = InteractiveShell.instance(config=config)
    shell.ask_exit = lambda: os._exit(0)  # exit() shuts a kernel down
    _forgive_magics(shell)
    forgive(shell)
    shell._showtraceback = lambda *_: None  # formatting it costs more than most answers do
    return shell


def _forgive_magics(shell: Any) -> None:
    """A magic that fails here (no pip, no front end for plots, no pager) must not end the cell that it stands in."""
    run_line_magic = shell.run_line_magic

    def forgiving(name: str, line: str, _stack_depth: int = 1) -> Any:
        if name in ("pinfo", "pinfo2", "psearch", "pip", "conda", "matplotlib"):
            return None
        try:
            return run_line_magic(name, line, _stack_depth=_stack_depth + 1)
        except Exception:
            return None

    shell.run_line_magic = forgiving
    shell.system = lambda command: None
    shell.getoutput = lambda command, **options: []


def run(payload: bytes, shell: Any, results: int, result_bytes: int, visitors: int | None = None) -> None:
    """Run all cells of ``payload``, then observe all its checks, and send what came of each.

    ``visitors``: file descriptor of a socket, for the checks that are visited.
    """
    from labsupport.checks import exercise
    from labsupport.checks.channel import Channel
    from labsupport.checks.plain import decode, encode, running_call
    from labsupport.checks.visited import VisitedCheck

    signal.signal(signal.SIGUSR1, lambda *_: send(results, CALLING, 0, running_call().encode(errors="replace")))
    sys.path.append(os.getcwd())  # as in a kernel, for modules that a cell writes; last, so that none is hidden
    (length,) = struct.unpack_from("<Q", payload)
    header = json.loads(payload[8 : 8 + length])
    for index, (_, source) in enumerate(header["cells"]):
        with contextlib.suppress(Exception):  # what is no Python is said when it is run
            stand_in_for_missing(shell.transform_cell(source))
        send(results, CELL, index, json.dumps(run_cell(shell, source)).encode())
    checks = exercise(header["exercise"]).checks if header["checks"] else ()
    connection = None if visitors is None else socket.socket(fileno=visitors)
    offset = 8 + length
    for index, size in header["checks"]:
        send(results, STARTED, index)
        check = checks[index]
        try:
            if isinstance(check, VisitedCheck) and connection:
                check.attend(shell.user_ns, Channel(connection), {"check": index})
                send(results, VALUES, index)
                continue
            values = encode(check.observe(shell.user_ns, decode(payload[offset : offset + size])))
            if len(values) > result_bytes:
                send(results, NO_VALUES, index, f"your code returned more than {result_bytes >> 20} MiB".encode())
            else:
                send(results, VALUES, index, values)
        except BaseException as error:  # an answer may raise KeyboardInterrupt, say
            send(results, NO_VALUES, index, f"your code raised {_explain(error)}".encode(errors="replace"))
        offset += size
    send(results, DONE)


def run_cell(shell: Any, source: str) -> str | None:
    """Run one cell; return the error it ended with, in one line."""
    try:
        outcome = shell.run_cell(source, store_history=True)
        error = outcome.error_before_exec or outcome.error_in_exec
    except BaseException as escaped:
        error = escaped
    return None if error is None else _explain(error)


def _explain(error: BaseException) -> str:
    try:
        message = (str(error).strip().splitlines() or [""])[0][:200]
    except BaseException:  # an exception whose __str__ raises
        message = ""
    line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{type(error).__name__}: {message}".removesuffix(": ") + line
