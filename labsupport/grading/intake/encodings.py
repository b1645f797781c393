"""In which encoding are these names? By which reading makes them look like names.

First what zips mostly have is tried: UTF-8, then cp437, cp1252 and cp850. Only if the names look wrong in all of these,
the encodings of other systems are. Then, and where two readings look as good, the guess is `Guess.unsure`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_USUAL = ("cp437", "cp1252", "cp850")
_OTHERS = ("cp866", "gbk", "shift_jis", "cp949", "big5", "cp1251", "cp737", "cp1253", "cp852", "cp1250")
# the first bytes of the characters that are frequent
_FREQUENT = {"gbk": (0xB0, 0xD7), "shift_jis": (0x81, 0x97), "cp949": (0xB0, 0xC8), "big5": (0xA4, 0xC6)}
_SIGNS = frozenset("ªºƒⁿµ¹²³¼½¾")  # letters and digits by Unicode, but not of names
_ACCENTED_IN_A_ROW = 4  # "Èâàíîâ" is Cyrillic; "Sæþór" is a name


@dataclass(frozen=True)
class Guess:
    encoding: str
    unsure: bool = False
    remark: str = ""  # empty for UTF-8, which cannot be mistaken


def guess_encoding(names: Iterable[bytes]) -> Guess:
    """One encoding for all ``names``."""
    names = list(names)
    if _decodes(names, "utf-8"):
        return Guess("utf-8")
    best, costs = _best(names, _USUAL)
    usual = costs.get(best) == 0
    if not usual:
        other, more = _best(names, _OTHERS)
        if more and (not costs or more[other] < costs[best]):
            best, costs = other, more
    texts = [name.decode(best) for name in names]
    rivals = [e for e, cost in costs.items() if cost == costs[best] and [n.decode(e) for n in names] != texts]
    says = f", which may also be {' or '.join(rivals)}" if rivals else ""
    says += ", but then they look wrong: ask for a zip with names in UTF-8" if costs.get(best, 1) else ""
    return Guess(
        best, bool(rivals) or not usual, f"the zip does not say how its names are encoded: read as {best}{says}"
    )


def decoded_text(data: bytes) -> str:
    """What a file says in UTF-8, or in UTF-16 with a mark, as spreadsheets write it.

    Raises:
        UnicodeDecodeError: it is in neither.
    """
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def oddness(name: str) -> int:
    """How many characters are unlikely in a name: symbols, controls, a Greek letter in a Latin word, "aB"."""
    odd = sum(not c.isascii() and (unicodedata.category(c)[0] not in "LMN" or c in _SIGNS) for c in name)
    row = 0
    for one, two in pairwise(name):
        odd += one.isalpha() and two.isalpha() and _script(one) != _script(two)
        odd += one.islower() and two.isupper() and not (one.isascii() and two.isascii())
        row = row + 1 if _is_accented(one) else 0
        odd += row + 1 >= _ACCENTED_IN_A_ROW and _is_accented(two)
    return odd


def _best(names: Sequence[bytes], encodings: Sequence[str]) -> tuple[str, dict[str, int]]:
    """The encoding with the lowest cost, and the costs of all that are possible."""
    costs = {encoding: sum(map(_cost(encoding), names)) for encoding in encodings if _decodes(names, encoding)}
    return min(costs, key=lambda encoding: costs[encoding], default="latin-1"), costs


def _cost(encoding: str) -> Callable[[bytes], int]:
    def cost(name: bytes) -> int:
        text = name.decode(encoding)
        if encoding not in _FREQUENT:
            return oddness(text)
        first, last = _FREQUENT[encoding]
        codes = [c.encode(encoding) for c in text if not c.isascii()]
        rare = sum(len(code) == 1 or not (first <= code[0] <= last and code[-1] >= 0x40) for code in codes)
        rare += sum(encoding == "gbk" and len(code) == 2 and code[1] < 0xA1 for code in codes)
        return oddness(text) + rare

    return cost


def _decodes(names: Iterable[bytes], encoding: str) -> bool:
    try:
        return all(name.decode(encoding) is not None for name in names)
    except UnicodeDecodeError:
        return False


def _is_accented(c: str) -> bool:
    return not c.isascii() and c.isalpha() and _script(c) == "LATIN"


def _script(c: str) -> str:
    """Kanji and kana, as they are written together, count as one."""
    name = unicodedata.name(c, "").partition(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name
