"""What systems, browsers and people add to the name of a file that is copied, downloaded or handed in again.

ex01 (1)  ex01(1)  ex01-Copy1  ex01-checkpoint             browsers, JupyterLab
ex01 - Copy (2)  ex01 - Kopie  ex01 — копия  ex01 - 副本    Windows, in its languages
ex01 copy 2  ex01 Kopie 2  ex01のコピー                      macOS
Copy of ex01  Kopie von ex01  Копия ex01  ex01 的副本        Google Drive, Colab
"""

from __future__ import annotations

import re
import unicodedata

# "X of" in front of a name: Google Drive, Colab, Windows up to 7
_OF = (
    "copy of", "copy (2) of", "copy (3) of", "kopie von", "copie de", "copia de", "copia di", "cópia de",
    "kopie van", "kopia pliku", "kopia av", "kopi av", "kopi af", "kopia", "копия", "копия файла", "копія",
    "копія файлу", "kopie souboru", "kopie", "kópia súboru", "kópia", "kopio tiedostosta", "kopio kohteesta",
    "kopio", "salinan dari", "salinan", "bản sao của", "สำเนาของ", "สำเนา", "نسخة من", "αντίγραφο του",
    "αντίγραφο", "copie a", "copia del", "còpia de", "kopija datoteke", "kopija", "koopia failist", "עותק של",
    "копие на", "копие от", "کپی از", "کپی", "رونوشت از", "کپیِ", "salinan fail", "コピー ～", "复件", "複本",
    "複製", "사본", "복사본",
)  # fmt: skip
# "X" behind a name: Windows, macOS, Linux
_COPY = (
    "copy", "another copy", "kopie", "copie", "copia", "cópia", "còpia", "copiar", "kopia", "kopi", "kopio",
    "kopya", "kopyası", "dosyasının kopyası", "adlı dosyanın kopyası", "kópia", "копия", "копія", "копие",
    "másolat", "másolata", "salinan", "αντίγραφο", "نسخة", "نسخ", "สำเนา", "bản sao", "sao chép", "kopija",
    "koopia", "kopiraj", "עותק", "کپی", "prati", "प्रतिलिपि", "कॉपी", "की कॉपी", "की प्रतिलिपि", "प्रति",
    "duplicate",
)  # fmt: skip
# no space before
_COPY_EASTERN = (
    "のコピー", "コピー", "的副本", "的複本", "副本", "複本", "拷贝", "的拷贝", "拷貝", "的拷貝", "複製", "复制",
    "의 사본", "사본", "복사본", "의 복사본",
)  # fmt: skip


def _any(words: tuple[str, ...]) -> str:
    longest_first = sorted({unicodedata.normalize("NFC", word) for word in words}, key=len, reverse=True)
    return "|".join(re.escape(word).replace(r"\ ", "[ _]") for word in longest_first)


_NUMBER = r"(?:[ _-]*[(（]?(\d{1,3})[)）]?)?"
_BETWEEN = r"(?:[ _]+(?:[-–—:][ _]*)?|[ _]*[-–—:][ _]*)[\"“„«「]?"
_CONFLICTS = "conflict|konflikt|conflit|conflitto|conflicto|conflito|конфликт|冲突|衝突|競合"
_CONFLICT = rf"[ _]*[(（][^()（）]*(?:{_CONFLICTS})[^()（）]*[)）]()"
_MARKS = (
    r"[ _-]*[(（](\d{1,3})[)）]",
    r"-Copy(\d{0,3})",
    r"[-_ ]checkpoint()",
    r"[ _]*[(（](?:\d+(?:st|nd|rd|th) copy|another copy)[)）]()",
    _CONFLICT,
    rf"[ _]*[ _–—-][ _]*[(（]?(?:{_any(_COPY)})[)）]?{_NUMBER}",
    rf"[ _]*[(（](?:{_any(_COPY)})[ _]?(\d{{1,3}})?[)）]",
    rf"[\"”“»」]?[ _–—-]*(?:{_any(_COPY_EASTERN)}){_NUMBER}",
)
_BEFORE = re.compile(rf"^(?:{_any(_OF)}){_BETWEEN}", re.IGNORECASE)
_AFTER = tuple(re.compile(rf"{mark}$", re.IGNORECASE) for mark in _MARKS)
_ENDS_BEFORE = re.compile(rf"(?:^|(?<=[ _-]))(?:{_any(_OF)}){_BETWEEN}$", re.IGNORECASE)  # "Jim - Copy of ex01"
_BEGINS_AFTER = tuple(re.compile(rf"^{mark}(?=[ _-])", re.IGNORECASE) for mark in _MARKS)  # "ex01 (1) Jim"


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


def without_inner_marks(before: str, after: str) -> tuple[str, str]:
    """What stands before and behind an exercise's name, without the marks next to it."""
    if found := _ENDS_BEFORE.search(before):
        before = before[: found.start()]
    for pattern in _BEGINS_AFTER:
        if found := pattern.search(after):
            after = after[found.end() :]
    return before, after
