"""Files and folders that appear whole or not at all, even if the process is killed while it writes them.

The new content is written beside its target under a hidden name, then renamed over it, which POSIX makes one step. A
process that is killed in the middle leaves the target as it was and its own unfinished ``.name.*.tmp`` beside it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """Where fetched models and what has been computed are kept: ``$LABSUPPORT_CACHE``, else ``~/.cache/labsupport``."""
    return Path(os.environ.get("LABSUPPORT_CACHE") or Path.home() / ".cache" / "labsupport")


@contextmanager
def replacing(path: Path | str, private: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; at the end of the block it takes the place of ``path`` in one step.

    If the block raises, ``path`` is as it was and nothing is left beside it. A file that is replaced keeps its mode; a
    link is replaced by a file, and what it points to is left alone.

    Args:
        private: nobody else may read the new file, at any moment (mode 600), whatever the old one allowed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    mode = 0o600 if private else _mode(path)
    # a new file's mode is left to the kernel: a process can only read its umask by changing it for all of its threads
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode | 0o600))
    try:
        mode = _mode(temporary) if mode is None else mode
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a power cut soon after could leave the new name without its content
        temporary.chmod(mode or 0o600)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path | str, content: str | bytes, private: bool = False) -> None:
    """Replace ``path`` in one step: a reader sees the old file or the new one. Text is written as UTF-8."""
    with replacing(path, private) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing_folder(folder: Path | str) -> Iterator[Path]:
    """A new folder beside ``folder`` to fill; at the end of the block it takes the place of ``folder`` in one step.

    If the block raises, nothing is left of the new folder.

    Raises:
        FileExistsError: ``folder`` is a file, or holds something, before the block is run.
        OSError: it has come to hold something meanwhile. It is left as it is in both cases.
    """
    folder = Path(folder).absolute()
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name in the same folder, which nothing has, and which is short enough for any file system."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")


def _mode(path: Path) -> int | None:
    """The permissions of a regular file; None if there is none."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return None
    return stat.S_IMODE(found) if stat.S_ISREG(found) else None
