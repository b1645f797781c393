"""When two spellings of a name mean the same person.

Vowel signs, tone marks and joiners are part of a name: राम and रिम, or กา and กี, differ in nothing else. They are kept
everywhere. Accents are dropped only from Latin, Greek and Cyrillic letters, and only to find somebody on a roster when
the stricter comparisons find nobody.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_SPELLED_OUT = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)
_BARE = ("LATIN", "GREEK", "CYRILLIC")


def name_key(text: str) -> str:
    """Equal for spellings that differ only in case, in spaces, or in how Unicode composes the same letters.

    Letters that case folding would make several (ß) stay as they are: Weiß and Weiss are two names.
    """
    folded = "".join(map(_fold, " ".join(unicodedata.normalize("NFC", text).split())))
    return unicodedata.normalize("NFC", folded)


def loose_key(text: str) -> str:
    """Equal also for spellings that differ in spaces and punctuation, which an LMS drops from names of files."""
    key = name_key(text)
    return "".join(c for c in key if unicodedata.category(c)[0] not in "ZPC") or key


@lru_cache(maxsize=16384)
def plain_key(text: str) -> str:
    """Equal also for spellings that differ in the accents of Latin, Greek or Cyrillic letters."""
    kept, bare = [], False
    for c in unicodedata.normalize("NFD", loose_key(text).translate(_SPELLED_OUT)):
        if unicodedata.combining(c) and bare:
            continue
        bare = unicodedata.name(c, "").startswith(_BARE)
        kept.append(c)
    return unicodedata.normalize("NFC", "".join(kept))


def _fold(c: str) -> str:
    return next((form for form in (c.casefold(), c.lower()) if len(form) == 1), c)
