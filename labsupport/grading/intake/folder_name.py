"""The folder of a student, made from the name so that it can be undone, and so that no two names share a folder.

Letters, marks and digits of every script stay as they are. What some system does not allow, or gives a meaning to, is
written as in addresses of the web: the bytes of its UTF-8, each as ``%`` and two digits. A name that is too long for a
file system is cut, and ends in ``~`` and a hash of the whole; `collected.csv` says which name that is.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from itertools import accumulate

MAX_BYTES = 200  # most file systems allow 255, some that encrypt names 143; suffixes such as ".html" are added
_HASH = 12
_PLAIN = frozenset(" _.@+-',()\u200c\u200d")  # the last two join letters of Persian and of India's scripts
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows
_ESCAPED = re.compile(r"(?:%[0-9A-F]{2})+")


def folder_of(name: str) -> str:
    """The folder for the student called ``name``; empty if there is nothing to call it by."""
    name = unicodedata.normalize("NFC", name).strip()
    last = len(name) - 1
    pieces = [
        c if _is_plain(c) and not (i == 0 and not c.isalnum()) and not (i == last and c in " .") else _escape(c)
        for i, c in enumerate(name)
    ]
    if _RESERVED.fullmatch(name):
        pieces[0] = _escape(name[0])
    folder = "".join(pieces)
    return folder if len(folder.encode()) <= MAX_BYTES else _cut(pieces) + f"~{_hash(name)}"


def name_of(folder: str, known: Mapping[str, str] | None = None) -> str:
    """The student whose folder this is, the inverse of `folder_of`.

    Args:
        known: folder -> name, for names that were too long. A folder that `folder_of` did not make is its own name.
    """
    folder = unicodedata.normalize("NFC", folder)
    if known and folder in known:
        return known[folder]
    try:
        name = _ESCAPED.sub(lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), folder)
    except UnicodeDecodeError:
        return folder
    return name if folder_of(name) == folder else folder


def _is_plain(c: str) -> bool:
    """Kept as it is. Letters that some file systems take for several others (ß for ss) are not."""
    return c in _PLAIN or (unicodedata.category(c)[0] in "LMN" and len(c.casefold()) == 1)


def _escape(c: str) -> str:
    return "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))


def _cut(pieces: list[str]) -> str:
    """As many whole pieces as there is room for beside the hash, without splitting a letter from its marks."""
    room = MAX_BYTES - _HASH - 1
    kept = next(i for i, total in enumerate(accumulate(len(piece.encode()) for piece in pieces)) if total > room)
    while kept > 1 and len(pieces[kept]) == 1 and unicodedata.category(pieces[kept])[0] == "M":
        kept -= 1
    return "".join(pieces[:kept])


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
