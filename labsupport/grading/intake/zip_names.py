"""Names of files whose encoding nobody recorded: in zips without the UTF-8 flag, and where such a zip was unpacked.

A zip's names are in UTF-8 if a flag says so, else in cp437 by the specification, and in practice in whatever the
packing system used: UTF-8 (macOS, many web applications), cp437 or cp850 (Windows), cp1252. All names of one zip are
read in the same encoding, the first in which none of them looks wrong.
"""

from __future__ import annotations

import struct
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from itertools import pairwise

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field
_CANDIDATES = ("cp437", "cp1252", "cp850")
_SIGNS = frozenset("ªºƒⁿµ¹²³¼½¾")  # letters and digits by Unicode, but not of names


def entry_names(entries: Sequence[zipfile.ZipInfo]) -> tuple[list[str], str]:
    """The name of each entry, and which encoding was guessed for all: empty if none had to be, else a remark."""
    raw = {
        i: entry.orig_filename.encode("cp437")
        for i, entry in enumerate(entries)
        if not entry.flag_bits & _UTF8_FLAG and not entry.orig_filename.isascii() and _recorded(entry) is None
    }
    encoding, remark = _encoding(raw.values())
    names = []
    for i, entry in enumerate(entries):
        recorded = _recorded(entry)
        names.append(raw[i].decode(encoding) if i in raw else recorded if recorded is not None else entry.orig_filename)
    return names, remark


def mended(name: str) -> str:
    """``name`` as it was before a program took its UTF-8 for cp437 ("J├╝rgen") or for cp1252 ("JÃ¼rgen")."""
    for encoding in ("cp437", "cp1252"):
        try:
            before = name.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        if before != name and _oddness(before) < _oddness(name):
            return before
    return name


def decoded(name: str) -> str:
    """A name of a file system that holds bytes which are not UTF-8 (as Python's lone surrogates), as text."""
    try:
        name.encode("utf-8")
        return name
    except UnicodeEncodeError:
        data = name.encode("utf-8", "surrogateescape")
        return data.decode(_encoding([data])[0])


def _encoding(names: Iterable[bytes]) -> tuple[str, str]:
    names = list(names)
    if not names:
        return "utf-8", ""
    if _decodes(names, "utf-8"):
        return "utf-8", ""
    found = [encoding for encoding in _CANDIDATES if _decodes(names, encoding)]
    costs = {encoding: sum(_oddness(name.decode(encoding)) for name in names) for encoding in found}
    best = min(found, key=lambda encoding: costs[encoding], default="latin-1")
    rivals = [e for e in found if costs[e] == costs.get(best) and any(n.decode(e) != n.decode(best) for n in names)]
    unsure = f", which may also be {' or '.join(rivals)}" if rivals else ""
    unsure += ", but then they look wrong: ask for a zip with names in UTF-8" if costs.get(best, 1) else ""
    return best, f"the zip does not say how its names are encoded: read as {best}{unsure}"


def _decodes(names: Iterable[bytes], encoding: str) -> bool:
    try:
        return all(name.decode(encoding) is not None for name in names)
    except UnicodeDecodeError:
        return False


def _oddness(name: str) -> int:
    """How many characters are unlikely in a name: symbols, controls, a Greek letter in a Latin word, "aB"."""
    odd = sum(not c.isascii() and (unicodedata.category(c)[0] not in "LMN" or c in _SIGNS) for c in name)
    for one, two in pairwise(name):
        odd += one.isalpha() and two.isalpha() and _script(one) != _script(two)
        odd += one.islower() and two.isupper() and not (one.isascii() and two.isascii())
    return odd


def _script(c: str) -> str:
    return unicodedata.name(c, "").partition(" ")[0]


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
