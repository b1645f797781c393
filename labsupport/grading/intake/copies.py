"""What systems, browsers and people add to the name of a file that is copied, downloaded or handed in again.

ex01 (1)  ex01(1)  ex01-Copy1  ex01-checkpoint             browsers, JupyterLab
ex01 - Copy (2)  ex01 - Kopie  ex01 — копия  ex01 - 副本    Windows, in its languages
ex01 copy 2  ex01 Kopie 2  ex01のコピー                      macOS
Copy of ex01  Kopie von ex01  Копия ex01  ex01 的副本        Google Drive, Colab
"""

from __future__ import annotations

import re
import unicodedata

_OF = (
    "copy of", "kopie von", "copie de", "copia de", "copia di", "cópia de", "kopie van", "kopia pliku", "kopia av",
    "kopi av", "kopi af", "kopia", "копия", "копія", "kopie souboru", "kópia súboru", "kopio tiedostosta", "kopio",
    "salinan", "bản sao của", "สำเนาของ", "نسخة من", "αντίγραφο", "copie a", "copia del", "còpia de", "kopija",
)  # fmt: skip
_COPY = (
    "copy", "kopie", "copie", "copia", "cópia", "còpia", "copiar", "kopia", "kopi", "kopio", "kopya", "kopyası",
    "kópia", "копия", "копія", "másolat", "másolata", "salinan", "αντίγραφο", "نسخة", "สำเนา", "bản sao", "kopija",
    "प्रतिलिपि", "कॉपी", "की कॉपी",
)  # fmt: skip
_COPY_EASTERN = (
    "のコピー",
    "コピー",
    "的副本",
    "的複本",
    "副本",
    "複本",
    "拷贝",
    "的拷贝",
    "의 사본",
    "사본",
    "복사본",
)  # no space before


def _any(words: tuple[str, ...]) -> str:
    longest_first = sorted({unicodedata.normalize("NFC", word) for word in words}, key=len, reverse=True)
    return "|".join(re.escape(word).replace(r"\ ", "[ _]") for word in longest_first)


_NUMBER = r"(?:[ _-]*[(（]?(\d{1,3})[)）]?)?"
_BEFORE = re.compile(rf"^(?:{_any(_OF)})(?:[ _]+(?:[-–—:][ _]*)?|[ _]*[-–—:][ _]*)[\"“„«「]?", re.IGNORECASE)
_AFTER = (
    re.compile(r"[ _-]*[(（](\d{1,3})[)）]$"),
    re.compile(r"-Copy(\d{0,3})$", re.IGNORECASE),
    re.compile(r"[-_ ]checkpoint()$", re.IGNORECASE),
    re.compile(rf"[ _]*[ _–—-][ _]*[(（]?(?:{_any(_COPY)})[)）]?{_NUMBER}$", re.IGNORECASE),
    re.compile(rf"[\"”“»」]?[ _–—-]*(?:{_any(_COPY_EASTERN)}){_NUMBER}$"),
)


def without_copy_marks(stem: str) -> tuple[str, int]:
    """``stem`` without what was added to it, and the highest number among that (1 for a mark without a number)."""
    stem, again = unicodedata.normalize("NFC", stem), 0
    while True:
        before = stem
        if found := _BEFORE.match(stem):
            stem, again = stem[found.end() :].strip('"”“»」'), max(again, 1)
        for pattern in _AFTER:
            if found := pattern.search(stem):
                stem, again = stem[: found.start()], max(again, int(found[1] or 1))
        if stem == before or not stem:
            return stem or before, again
