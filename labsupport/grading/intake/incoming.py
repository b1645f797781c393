"""Every file below a folder or inside an archive, as bytes, from untrusted sources.

Nothing is ever extracted: an archive's entries are read into memory, within limits, and their names are never used as
paths to write to. In folders no link is followed, and only regular files are opened. An archive among the files is one
student's: whatever it holds is that student's too, and archives in it are not opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath

from labsupport.grading.intake import found as limits
from labsupport.grading.intake.archives import entries_of, open_bytes, open_file
from labsupport.grading.intake.found import File, Found, Refused
from labsupport.grading.intake.kinds import archive_kind, is_notebook_name, noise
from labsupport.grading.intake.zip_names import decoded, mended


def find(source: Path) -> Found:
    """All files in ``source``, a folder, a zip or a tar.

    Raises:
        ValueError: ``source`` is none of them.
    """
    if source.is_dir():
        found = _in_folder(source)
    elif source.is_file():
        found = Found()
        try:
            found = entries_of(open_file(source), source.name)
        except Refused as refused:
            found.refused.append((source.name, str(refused)))
    else:
        raise ValueError(f"SOURCE must be a folder, a zip or a tar, got {source}")
    if not found.files and not found.refused:
        found.refused.append((source.name, "holds no file"))
    return _with_inner_archives(found)


def _with_inner_archives(found: Found) -> Found:
    """Students' archives replaced by what they hold."""
    opened = Found(refused=found.refused)
    for file in found.files:
        if noise(file.path) or not (archive_kind(file.path.name) or _is_zip_under_another_name(file)):
            opened.files.append(file)
            continue
        try:
            inner = entries_of(open_bytes(file.read()), file.origin)
            if not inner.files and not inner.refused:
                raise Refused("is an archive that holds no file")
        except Refused as refused:
            opened.refused.append((file.origin, str(refused)))
            continue
        opened.refused += inner.refused
        for entry in inner.files:
            if archive_kind(entry.path.name) and not noise(entry.path):
                opened.refused.append((entry.origin, "is an archive inside an archive: unpack it by hand"))
            else:
                opened.files.append(replace(entry, path=file.path, inside=entry.path, modified=file.modified))
    return opened


def _is_zip_under_another_name(file: File) -> bool:
    """Whether a student called a zip "ex01.ipynb" or "ex01"; documents are zips too, and have other names."""
    if not is_notebook_name(file.path.name) and file.path.suffix:
        return False
    try:
        return file.read().startswith(b"PK\x03\x04")
    except Refused:
        return False


def _in_folder(root: Path) -> Found:
    found = Found()
    for path in _walk(root, root, found):
        raw = path.relative_to(root).as_posix()
        name = "/".join(mended(decoded(part)) for part in raw.split("/"))
        remark = "" if name == raw else f"its name was not readable and is taken as {name!r}"
        modified = datetime.fromtimestamp(path.lstat().st_mtime).astimezone()
        origin = decoded(raw)
        found.files.append(File(PurePosixPath(name), origin, modified, partial(_read_file, path), remark=remark))
        if len(found.files) > limits.MAX_ENTRIES:
            raise ValueError(f"SOURCE must hold at most {limits.MAX_ENTRIES:,} files, {root} holds more")
    return found


def _walk(folder: Path, root: Path, found: Found, depth: int = 0) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            where = decoded(Path(entry.path).relative_to(root).as_posix())
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                if depth == limits.MAX_DEPTH:
                    found.refused.append((where, f"lies more than {limits.MAX_DEPTH} folders deep"))
                else:
                    yield from _walk(Path(entry.path), root, found, depth + 1)
            elif stat.S_ISREG(mode):
                yield Path(entry.path)
            else:
                found.refused.append((where, "is a symbolic link" if stat.S_ISLNK(mode) else "is not a regular file"))


def _read_file(path: Path) -> bytes:
    """Read at most `found.MAX_FILE` bytes, without following a link or waiting for a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused("is not a regular file")
            data = file.read(limits.MAX_FILE + 1)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    if len(data) > limits.MAX_FILE:
        raise Refused(f"is larger than {limits.MAX_FILE >> 20} MB")
    return data
