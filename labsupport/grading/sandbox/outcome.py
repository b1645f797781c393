"""The outcome of a run, read from the frames that its supervisor sent."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from labsupport.grading.sandbox import kernel


class SandboxError(RuntimeError):
    """The sandbox itself failed. Never raised for anything that code inside does."""


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Everything except ``ended``, ``exit_code`` and the measurements comes from untrusted code."""

    ended: str  # "" if it ended by itself, else why the supervisor ended it: "timeout", "asleep", "memory", ...
    exit_code: int  # negative: the signal
    done: bool  # all cells and checks have run
    cells: dict[int, str | None] = field(default_factory=dict)  # position -> the error that it ended with
    values: dict[int, bytes] = field(default_factory=dict)  # index of a check -> encoded values
    failures: dict[int, str] = field(default_factory=dict)  # index of a check -> why there are no values
    started: tuple[int, ...] = ()  # checks, in order
    calling: str = ""  # the call that was cut short, if that is known
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


def outcome_of(frames: list[tuple[bytes, int, bytes]]) -> Outcome:
    """Read frames, the last of which is the supervisor's report.

    Raises:
        SandboxError: the code was never run.
    """
    found = json.loads(frames[-1][2])
    sent: dict[bytes, list[tuple[int, bytes]]] = {}
    for kind, index, data in frames:
        sent.setdefault(kind, []).append((index, data))
    for _, reason in sent.get(kernel.FAILED, []):
        raise SandboxError(reason.decode(errors="replace"))
    if kernel.ENTERED not in sent and found["ended"] != "interrupted":
        raise SandboxError(f"nothing came from inside: {found}")
    return Outcome(
        ended=found["ended"],
        exit_code=found["exit_code"],
        done=kernel.DONE in sent,
        cells={index: _error(data) for index, data in sent.get(kernel.CELL, [])},
        values=dict(sent.get(kernel.VALUES, [])),
        failures={index: data.decode(errors="replace") for index, data in sent.get(kernel.NO_VALUES, [])},
        started=tuple(index for index, _ in sent.get(kernel.STARTED, [])),
        calling="".join(data.decode(errors="replace") for _, data in sent.get(kernel.CALLING, [])[:1]),
        seconds=found["seconds"],
        cpu_seconds=found["cpu_seconds"],
        memory_bytes=found["memory_bytes"],
    )


def read_frames(
    pipe: int, seconds: float, watch: Callable[[int], None] | None = None
) -> list[tuple[bytes, int, bytes]]:
    """All frames until the supervisor closes its end, which limits their number and length.

    Args:
        watch: called with the index of each check that begins, as soon as its frame is there.
    """
    data = bytearray()
    frames: list[tuple[bytes, int, bytes]] = []
    position = 0
    while wait_readable(pipe, seconds) and (part := os.read(pipe, 1 << 20)):
        data += part
        while position + kernel.FRAME.size <= len(data):
            kind, index, length = kernel.FRAME.unpack_from(data, position)
            start = position + kernel.FRAME.size
            if start + length > len(data):
                break
            frames.append((kind, index, bytes(data[start : start + length])))
            position = start + length
            if watch is not None and kind == kernel.STARTED:
                watch(index)
    return frames


def wait_readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read within ``seconds``, not counting time in which the machine is suspended."""
    while seconds > 0:
        start = time.monotonic()
        if select.select([descriptor], [], [], 1.0)[0]:
            return True
        seconds -= min(time.monotonic() - start, 1.0)
    return False


def _error(data: bytes) -> str | None:
    """A cell's error, as written by untrusted code."""
    try:
        text = json.loads(data)
    except (ValueError, RecursionError):
        return "?"
    return text if isinstance(text, str) or text is None else "?"
