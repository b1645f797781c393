"""The files in a zip or a tar, whatever its name says it is, with limits on everything that the archive claims."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from labsupport.grading.intake import found as limits
from labsupport.grading.intake.found import File, Found, Refused
from labsupport.grading.intake.zip_names import decoded, entry_names, mended

MAX_ARCHIVE = 4 * 2**30  # bytes of an archive
MAX_TOTAL = 4 * 2**30  # bytes read out of one archive
MAX_RATIO = 200  # unpacked size over packed size: 2 to 20 for notebooks, 1000 for a bomb
MAX_TAR_RATIO = 50  # all of it must be unpacked to see what it holds
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError,
    RuntimeError, ValueError, KeyError, IndexError, OverflowError, MemoryError,
)  # fmt: skip
_UNPACKERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", lambda file: bz2.BZ2File(file)),
    (b"\xfd7zXZ\x00", lambda file: lzma.LZMAFile(file)),  # noqa: SIM115
)


def open_file(path: Path) -> IO[bytes]:
    """An archive to be read; it stays open, as its entries are read later."""
    if path.stat().st_size > MAX_ARCHIVE:
        raise Refused(f"is larger than {MAX_ARCHIVE >> 30} GB")
    return open(path, "rb")


def open_bytes(data: bytes) -> IO[bytes]:
    return io.BytesIO(data)


def entries_of(archive: IO[bytes], name: str) -> Found:
    """The files in an ``archive`` that messages call ``name``.

    Raises:
        Refused: it is neither a zip nor a tar, or holds too much.
    """
    start = archive.read(512)
    archive.seek(0)
    try:
        if start[257:262] != b"ustar" and zipfile.is_zipfile(archive):
            return _in_zip(zipfile.ZipFile(archive), name)
        archive.seek(0)
        unpack = next((unpack for magic, unpack in _UNPACKERS if start.startswith(magic)), None)
        plain = archive if unpack is None else _unpacked(archive, unpack)
        return _in_tar(tarfile.open(fileobj=plain, mode="r:"), name)
    except Refused:
        raise
    except _BROKEN as error:
        raise Refused(f"not a readable zip or tar: {error or type(error).__name__}") from None


def _unpacked(archive: IO[bytes], unpack: Callable[[Any], Any]) -> IO[bytes]:
    """What a compressed file holds, in a temporary file if it is large."""
    left = min(MAX_TOTAL, max(archive.seek(0, io.SEEK_END) * MAX_TAR_RATIO, 2**20))
    archive.seek(0)
    plain: IO[bytes] = tempfile.SpooledTemporaryFile(limits.MAX_FILE)  # noqa: SIM115
    stream = unpack(archive)
    while chunk := stream.read(1 << 20):
        left -= len(chunk)
        if left < 0:
            raise Refused(f"would unpack to more than {MAX_TAR_RATIO} times its size")
        plain.write(chunk)
    plain.seek(0)
    return plain


def _in_zip(archive: zipfile.ZipFile, name: str) -> Found:
    found = Found()
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    _require_few(len(entries))
    names, guess = entry_names(entries)
    budget = _Budget()
    for entry, called in zip(entries, names, strict=True):
        inside, where = _path(called), f"{name}: {called}"
        mode = entry.external_attr >> 16
        kind = "is a symbolic link" if stat.S_ISLNK(mode) else "is not a regular file"
        regular = stat.S_IFMT(mode) in (0, stat.S_IFREG)
        reason = _why_not(inside, "\0" in entry.orig_filename) or ("" if regular else kind)
        if not reason and entry.flag_bits & 1:
            reason = "is encrypted"
        reason = reason or _too_large(entry.file_size, entry.compress_size)
        if reason:
            found.refused.append((where, reason))
        else:
            remark = "" if called.isascii() else guess.remark
            read = partial(_read, partial(archive.open, entry), where, budget)
            remark = _respelled(called, inside) or remark
            unsure = bool(remark) and guess.unsure and remark == guess.remark
            found.files.append(File(inside, where, _moment(entry), read, None, remark, unsure))
    return found


def _in_tar(archive: tarfile.TarFile, name: str) -> Found:
    found, count, budget = Found(), 0, _Budget()
    for member in archive:
        _require_few(count := count + 1)
        if member.isdir():
            continue
        called = decoded(member.name).removeprefix("./")
        inside, where = _path(called), f"{name}: {called}"
        kind = "is a symbolic link" if member.issym() or member.islnk() else "is not a regular file"
        reason = _why_not(inside, False) or ("" if member.isreg() else kind) or _too_large(member.size, member.size)
        if reason:
            found.refused.append((where, reason))
        else:
            modified = datetime.fromtimestamp(member.mtime).astimezone() if 0 < member.mtime < 2**33 else None
            read = partial(_read, partial(_member, archive, member), where, budget)
            found.files.append(File(inside, where, modified, read, remark=_respelled(called, inside)))
    return found


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    if file is None:
        raise Refused("is not a regular file")
    return file


def _path(called: str) -> PurePosixPath:
    return PurePosixPath("/".join(mended(part) for part in called.replace("\\", "/").split("/")))


def _respelled(called: str, inside: PurePosixPath) -> str:
    slashes = called.replace("\\", "/")
    return "" if PurePosixPath(slashes) == inside else f"its name was not readable and is taken as {inside}"


def _require_few(count: int) -> None:
    if count > limits.MAX_ENTRIES:
        raise Refused(f"holds more than {limits.MAX_ENTRIES} files")


def _why_not(inside: PurePosixPath, null: bool) -> str:
    if null or not inside.parts or inside.is_absolute() or ".." in inside.parts or ":" in inside.parts[0][:2]:
        return "its path leaves the archive"
    return f"lies more than {limits.MAX_DEPTH} folders deep" if len(inside.parts) > limits.MAX_DEPTH else ""


def _too_large(size: int, packed: int) -> str:
    if size > limits.MAX_FILE:
        return f"is larger than {limits.MAX_FILE >> 20} MB"
    if size > max(packed, 1) * MAX_RATIO and size > 2**20:
        return f"would unpack to more than {MAX_RATIO} times its size"
    return ""


class _Budget:
    """Bytes that may still be read out of one archive. A file counts once, however often it is read."""

    def __init__(self) -> None:
        self.left, self.read = MAX_TOTAL, set[str]()


def _read(opened: Callable[[], IO[bytes]], where: str, budget: _Budget) -> bytes:
    """Read at most `found.MAX_FILE` bytes, whatever the archive's directory claims."""
    try:
        with opened() as file:
            data = file.read(limits.MAX_FILE + 1)
    except _BROKEN as error:
        raise Refused(f"cannot be unpacked: {error}") from None
    if where not in budget.read:
        budget.left -= len(data)
        if budget.left < 0:
            raise Refused(f"the archive unpacks to more than {MAX_TOTAL >> 30} GB")
        budget.read.add(where)
    if len(data) > limits.MAX_FILE:
        raise Refused(f"is larger than {limits.MAX_FILE >> 20} MB")
    return data


def _moment(entry: zipfile.ZipInfo) -> datetime | None:
    try:
        return datetime(*entry.date_time).astimezone()
    except (ValueError, OverflowError, OSError):
        return None
