"""CSV files in which no cell is run by a spreadsheet as a formula.

A cell that begins with ``=``, ``+``, ``-`` or ``@`` (or a tab or line break before one) is run as a formula by
spreadsheets (https://owasp.org/www-community/attacks/CSV_Injection). Students choose names and cause messages, so such
a cell is prefixed with an apostrophe. Numbers stay numbers, even negative ones.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from labsupport.files import write_atomically

_CONTROL = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # the full-width ones count in some locales


def guard(cell: object) -> object:
    """``cell`` as one printable line, prefixed with an apostrophe if it is a text that a spreadsheet would run."""
    if not isinstance(cell, str):
        return cell
    line = printable(cell, " ").strip()
    return f"'{line}" if line.startswith(_STARTS) else line


def printable(text: str, instead: str = "?") -> str:
    """``text`` in one line, without characters that control a terminal or turn the direction of what follows.

    Those that join letters stay: in Persian and in the scripts of India they are part of a name.
    """
    return "".join(instead if unicodedata.category(c) in _CONTROL or c in _TURNING else c for c in text)


def unguard(cell: str) -> str:
    """The inverse of `guard`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_STARTS) else cell


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV in one step. Cells are guarded; the header is not, so it must be ours."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([guard(cell) for cell in row] for row in rows)
    write_atomically(path, text.getvalue())


def points(value: float) -> int | float:
    """Points as they are shown: 7, not 7.0, and at most two decimals."""
    rounded = round(float(value), 2)
    return int(rounded) if rounded == int(rounded) else rounded
