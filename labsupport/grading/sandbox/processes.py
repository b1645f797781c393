"""How a supervisor measures, ends and removes processes and files, through Linux's /proc."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time


def descendants(pid: int) -> list[int]:
    """``pid`` itself and all its descendants."""
    found = [pid]
    for each in found:
        try:
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children", encoding="ascii") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue
    return found


def processor_seconds(pids: list[int]) -> float:
    """Processor time of these processes, and of those that they have started and seen end."""
    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
        except (OSError, ValueError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def anonymous_bytes(pid: int) -> int:
    """Resident memory that no file backs, including pages that a fork still shares with its parent."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file if line.startswith(("RssAnon", "RssShmem"))]
    except OSError:
        return 0
    return 1024 * sum(int(line[1]) for line in lines)


def end_all(group: int) -> None:
    """End what is left of a run without its own process ids: its orphans have become this process's children."""
    for _ in range(2000):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        left = descendants(os.getpid())[1:]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none escapes by forking
            for pid in left:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def disk_bytes(folder: str) -> int:
    """Disk space that the files below ``folder`` take."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
    return total


def remove(folder: str) -> None:
    """Remove ``folder``, even if a submission has made that hard."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.isdir(folder):  # folders without permissions, or nested more deeply than Python recurses
        subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL, check=False)
