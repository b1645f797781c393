"""Files and folders that appear whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path | str, private: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; at the end of the block it takes the place of ``path`` in one step.

    If the block raises, ``path`` is what it was and nothing is left beside it. A file that is replaced keeps its mode.

    Args:
        private: nobody else may read the new file (mode 600), whatever the old one allowed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    mode = 0o600 if private else path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    try:
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path | str, content: str | bytes, private: bool = False) -> None:
    """Replace ``path`` in one step: whoever reads it sees the old file or the new one. Text is written as UTF-8."""
    with replacing(path, private) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing_folder(folder: Path | str) -> Iterator[Path]:
    """A new folder beside ``folder`` to fill; at the end of the block it takes the place of ``folder``.

    Raises:
        OSError: ``folder`` holds something; that is left as it is.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:100]}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The process's mask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
