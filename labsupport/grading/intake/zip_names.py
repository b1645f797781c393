"""Names of files whose encoding nobody recorded: in zips without the UTF-8 flag, and where such a zip was unpacked.

A zip's names are in UTF-8 if a flag says so, else in cp437 by the specification, and in practice in whatever the
packing system used: UTF-8 (macOS, many web applications), cp437 or cp850 (Windows), cp1252. All names of one zip are
read in the same encoding (`encodings`).
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence

from labsupport.grading.intake.encodings import Guess, guess_encoding, oddness

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field
# What a Latin name has, whose cp1252 was taken for cp437: "Jⁿrgen", "JosΘ", "Mu±oz"
_AS_CP437 = frozenset("ⁿ√≥≤≡≈∞∩±αβΓπΣστΦΘΩδφε") | {chr(code) for code in range(0x2500, 0x25A0)}


def entry_names(entries: Sequence[zipfile.ZipInfo]) -> tuple[list[str], Guess]:
    """The name of each entry, and which encoding was guessed for those that have none recorded."""
    raw = {
        i: entry.orig_filename.encode("cp437")
        for i, entry in enumerate(entries)
        if not entry.flag_bits & _UTF8_FLAG and not entry.orig_filename.isascii() and _recorded(entry) is None
    }
    guess = guess_encoding(raw.values())
    names = []
    for i, entry in enumerate(entries):
        recorded = _recorded(entry)
        names.append(
            raw[i].decode(guess.encoding) if i in raw else recorded if recorded is not None else entry.orig_filename
        )
    return names, guess


def mended(name: str) -> str:
    """``name`` as it was before a program misread it: UTF-8 as cp437 ("J├╝rgen"), cp1252 as cp437 ("Jⁿrgen")."""
    if name.isascii():
        return name
    for encoding in ("cp437", "cp1252", "mac_roman"):
        try:
            before = name.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        if before != name and oddness(before) < oddness(name):
            return before
    if _AS_CP437 & set(name) and oddness(name):
        try:
            before = name.encode("cp437").decode("cp1252")
        except UnicodeError:
            return name
        return name if oddness(before) else before
    return name


def decoded(name: str) -> str:
    """A name of a file system that holds bytes which are not UTF-8 (as Python's lone surrogates), as text."""
    try:
        name.encode("utf-8")
        return name
    except UnicodeEncodeError:
        data = name.encode("utf-8", "surrogateescape")
        return data.decode(guess_encoding([data]).encoding)


def _recorded(entry: zipfile.ZipInfo) -> str | None:
    """The name in Info-ZIP's Unicode Path field, if the entry has one that belongs to its name."""
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        data, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(data) > 5 and data[0] == 1:
            try:
                return data[5:].decode("utf-8")
            except UnicodeDecodeError:
                return None
    return None
