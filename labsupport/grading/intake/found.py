"""What a source of submissions turned out to hold, and the limits on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

MAX_FILE = 20 * 2**20  # bytes of one notebook, or of one student's archive
MAX_ENTRIES = 100_000  # files in an archive or below a folder
MAX_DEPTH = 12  # nested folders


@dataclass(frozen=True)
class File:
    """A file that can be read when it is needed. `path` is relative to the folder or archive in which it was found."""

    path: PurePosixPath
    origin: str  # for messages and the log
    modified: datetime | None
    read: Callable[[], bytes]  # raises Refused
    inside: PurePosixPath | None = None  # in an archive among the files; `path` is then that of the archive
    remark: str = ""  # what was not clear about its name
    unsure: bool = False  # whether its name may be another


@dataclass
class Found:
    """Every file is in one of the two."""

    files: list[File] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (origin, why)


class Refused(Exception):
    """A file that is not read; the message says why."""
