"""Every file below a folder or inside a zip, as bytes, from untrusted sources.

Nothing is ever extracted: a zip's entries are read into memory, within limits, and their names are never used as paths
to write to. In folders no link is followed, and only regular files are opened.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath

MAX_FILE = 20 * 2**20  # bytes of one notebook
MAX_ZIP = 4 * 2**30  # bytes of a zip file
MAX_ENTRIES = 100_000  # files in a zip or below a folder
MAX_TOTAL = 4 * 2**30  # bytes read out of one zip
MAX_RATIO = 200  # unpacked size over packed size: 2 to 20 for notebooks, 1000 for a zip bomb
MAX_DEPTH = 12  # nested folders
_WANTED = (".ipynb", ".zip", "timestamp.txt")
_NOISE = {".ipynb_checkpoints", "__MACOSX", ".git", "__pycache__"}


@dataclass(frozen=True)
class File:
    """A file that can be read when it is needed. `path` is relative to the folder or zip in which it was found."""

    path: PurePosixPath
    origin: str  # for messages
    modified: datetime | None
    read: Callable[[], bytes]  # raises Refused


@dataclass
class Found:
    """Files, what was refused and why, and what is not a notebook."""

    files: list[File] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # neither notebook nor timestamp


class Refused(Exception):
    """A file that is not read; the message says why."""


def find(source: Path) -> Found:
    """The notebooks and nbgrader's timestamps in ``source``, a folder or a zip.

    Zips in the folder are not opened: one student's zip could otherwise pass for the files of others.

    Raises:
        ValueError: ``source`` is neither.
    """
    if source.is_dir():
        return _in_folder(source)
    if source.is_file():
        return _in_zip(source)
    raise ValueError(f"SOURCE must be a folder or a zip, got {source}")


def _in_folder(root: Path) -> Found:
    found = Found()
    for path in _walk(root, root, found):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if path.suffix.lower() == ".zip":
            found.refused.append(
                (str(relative), "a zip inside the folder is not opened: name it as a SOURCE of its own")
            )
        else:
            modified = datetime.fromtimestamp(path.lstat().st_mtime).astimezone()
            found.files.append(File(relative, str(relative), modified, partial(_read_file, path)))
    return found


def _walk(folder: Path, root: Path, found: Found, depth: int = 0) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            where = str(Path(entry.path).relative_to(root))
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.name in _NOISE:
                continue
            if stat.S_ISDIR(mode):
                if depth == MAX_DEPTH:
                    found.refused.append((where, f"lies more than {MAX_DEPTH} folders deep"))
                else:
                    yield from _walk(Path(entry.path), root, found, depth + 1)
            elif stat.S_ISREG(mode):
                if entry.name.lower().endswith(_WANTED):
                    yield Path(entry.path)
                else:
                    found.ignored.append(where)
            else:
                found.refused.append((where, "is a symbolic link" if stat.S_ISLNK(mode) else "is not a regular file"))


def _read_file(path: Path) -> bytes:
    """Read at most `MAX_FILE` bytes, without following a link or waiting for a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused("is not a regular file")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise Refused(f"is larger than {MAX_FILE >> 20} MB")
    return data


def _in_zip(path: Path) -> Found:
    found = Found()
    try:
        if path.stat().st_size > MAX_ZIP:
            raise Refused(f"is larger than {MAX_ZIP >> 30} GB")
        archive = zipfile.ZipFile(path)  # stays open: entries are read later
        entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, Refused) as error:
        found.refused.append((path.name, f"not a readable zip: {error}"))
        return found
    if len(entries) > MAX_ENTRIES:
        found.refused.append((path.name, f"holds more than {MAX_ENTRIES} files"))
        return found
    budget = [MAX_TOTAL]
    for entry in entries:
        where = f"{path.name}: {entry.filename}"
        inside = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir() or _NOISE & set(inside.parts):
            continue
        reason = _why_not(entry, inside)
        if reason:
            found.refused.append((where, reason))
        elif not inside.name.lower().endswith(_WANTED):
            found.ignored.append(where)
        else:
            found.files.append(File(inside, where, _date(entry), partial(_read_entry, archive, entry, budget)))
    return found


def _why_not(entry: zipfile.ZipInfo, inside: PurePosixPath) -> str:
    """Why an entry is refused, judged by the zip's directory; empty if it is accepted."""
    mode = entry.external_attr >> 16
    if inside.is_absolute() or ".." in inside.parts or ":" in inside.parts[0] or "\0" in entry.orig_filename:
        return "its path leaves the zip"
    if len(inside.parts) > MAX_DEPTH:
        return f"lies more than {MAX_DEPTH} folders deep"
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a symbolic link" if stat.S_ISLNK(mode) else "is not a regular file"
    if inside.suffix.lower() == ".zip":
        return "is a zip inside a zip: unpack it by hand"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > MAX_FILE:
        return f"is larger than {MAX_FILE >> 20} MB"
    if entry.file_size > max(entry.compress_size, 1) * MAX_RATIO and entry.file_size > 2**20:
        return f"would unpack to more than {MAX_RATIO} times its size"
    return ""


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: list[int]) -> bytes:
    """Read at most `MAX_FILE` bytes, whatever the zip's directory claims."""
    try:
        with archive.open(entry) as file:
            data = file.read(min(MAX_FILE, budget[0]) + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Refused(f"cannot be unpacked: {error}") from None
    budget[0] -= len(data)
    if budget[0] < 0:
        raise Refused(f"the zip unpacks to more than {MAX_TOTAL >> 30} GB")
    if len(data) > MAX_FILE:
        raise Refused(f"is larger than {MAX_FILE >> 20} MB")
    return data


def _date(entry: zipfile.ZipInfo) -> datetime | None:
    try:
        return datetime(*entry.date_time).astimezone()
    except (ValueError, OverflowError, OSError):
        return None
