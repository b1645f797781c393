"""How much a submission may use, and how well it is isolated: limits and levels of isolation.

    namespaces   a file system, process ids, network and user of its own        (`namespaces`)
    landlock     the system's files except the hidden ones, no sockets          (`landlock`)
    none         limits only; never chosen unless it is asked for by name

A level is chosen by trying it (`warm.WarmProcess`), and every row says at which level it was graded.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("namespaces", "landlock", "none")
MIB = 2**20
WALL = 5.0


@dataclass(frozen=True)
class Limits:
    """Of one run of one submission. Bytes and seconds.

    Seconds are those of processors, of all processes and threads inside together: how long they take by the clock
    depends on what else the machine does. By the clock a run may take ``wall`` times as long, as waiting takes no
    processor.
    """

    seconds: float = 60.0
    seconds_a_step: float = 20.0  # for one cell or check, so that an endless loop costs only its own check's points
    wall: float = WALL  # seconds by the clock for each second of a processor that is allowed
    memory_bytes: int = 3072 * MIB  # in addition to the warm process, whose pages are shared
    disk_bytes: int = 256 * MIB
    file_bytes: int = 64 * MIB
    output_bytes: int = 10 * MIB  # printed by cells; what functions print while they are checked is dropped
    result_bytes: int = 16 * MIB  # of the values of one check
    processes: int = 64  # threads count
    open_files: int = 256


@dataclass(frozen=True)
class Place:
    """Where the sandbox is set up. Paths are absolute."""

    mount_point: str  # an empty folder
    readable: tuple[str, ...]
    hidden: tuple[str, ...]
    scratch: str = ""  # at the levels landlock and none: the folder to write to
    outside_uid: int = 0


def readable_folders() -> tuple[str, ...]:
    """Python's own folders: its prefixes and where packages are installed, but not a course that is on `sys.path`."""
    site = ("site-packages", "dist-packages")
    folders = [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(os.__file__).parent)]
    folders += [path for path in sys.path if Path(path).name in site]
    existing = dict.fromkeys(os.path.abspath(folder) for folder in folders if os.path.isdir(folder))
    inner = [f for f in existing if not any(f != g and f.startswith(g.rstrip("/") + "/") for g in existing)]
    return tuple(folder for folder in inner if folder != "/")


def limit_resources(limits: Limits, level: str) -> None:
    """Set the limits that the kernel enforces for this process and its children."""
    seconds = int(limits.seconds) + 5  # the supervisor, which counts all processes together, strikes first
    for kind, value in (
        (resource.RLIMIT_AS, _virtual_memory() + limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes + (0 if level == "namespaces" else _processes_of_this_user())),
        (resource.RLIMIT_CORE, 0),
    ):
        _, highest = resource.getrlimit(kind)
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(kind, (value, value))


def _virtual_memory() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2 * 2**30  # no /proc: about what torch maps


def _processes_of_this_user() -> int:
    """Threads of this user id, which the kernel counts together outside a user namespace."""
    count, uid = 0, os.getuid()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid == uid:
                count += len(os.listdir(entry / "task"))
        except OSError:
            continue
    return count
