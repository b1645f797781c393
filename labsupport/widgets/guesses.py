"""The reader's predictions: `predictions.json` in the notebook's folder, for `predict`, `compare` and `progress`.

Nothing is sent anywhere. Two notebooks may write at the same time: each reads, changes and replaces the file under a
lock. A file that cannot be read is never overwritten: it is set aside under a name of its own, and that is said.

A prediction is known by its key and its question together, so that two chapters may use one key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labsupport.files import write_atomically

FILE = "predictions.json"
LOCK = f".{FILE}.lock"
CLOSE = 0.25  # a number within a quarter of what was measured counts as right
_ABOUT = "My predictions in the chapters. Only read on this machine; delete the file to start again."


@dataclass(frozen=True)
class Guess:
    """One prediction: a number or one of the choices, and what was measured, once it was compared."""

    key: str
    question: str
    guess: str | float
    unit: str = ""
    made: str = ""  # when, ISO 8601 with zone
    measured: str | float | None = None

    @property
    def right(self) -> bool | None:
        """None before it was compared; a number is right within a quarter of what was measured."""
        if self.measured is None or isinstance(self.guess, str) is not isinstance(self.measured, str):
            return None
        if isinstance(self.guess, str) or isinstance(self.measured, str):
            return self.guess == self.measured
        return abs(self.guess - self.measured) <= CLOSE * abs(self.measured)


class UnreadableGuesses(ValueError):
    """`predictions.json` is not what this module writes. The file is left as it is."""


def read_guesses(folder: Path | str) -> list[Guess]:
    """All predictions of a folder, oldest first; none if there is no file.

    Raises:
        UnreadableGuesses: the file holds something else; says what.
        OSError: it may not be read.
    """
    path = Path(folder) / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        return [_as_guess(entry) for entry in json.loads(data)["predictions"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = "it is empty" if not data.strip() else f"{type(error).__name__}: {error}"
        raise UnreadableGuesses(f"{path} cannot be read as predictions ({problem})") from None


def find_guess(folder: Path | str, key: str, question: str | None = None) -> Guess | None:
    """The prediction of this key; without ``question``, the only one with this key, None if there are several.

    Raises:
        UnreadableGuesses, OSError: as `read_guesses`.
    """
    found = [each for each in read_guesses(folder) if each.key == key and question in (None, each.question)]
    return found[0] if len(found) == 1 else None


def keep_guess(folder: Path | str, guess: Guess) -> str:
    """Write one prediction, in place of an earlier one to the same question; the time is filled in.

    Returns:
        A warning for the reader: that the file could not be read, and under which name it was set aside; "" if all
        is well.

    Raises:
        OSError: the folder cannot be written, or another notebook holds the file for seconds.
    """
    folder, warning = Path(folder), ""
    with _locked(folder):
        try:
            others = [each for each in read_guesses(folder) if (each.key, each.question) != (guess.key, guess.question)]
        except UnreadableGuesses as error:
            aside = _set_aside(folder / FILE)
            others, warning = [], f"{error}; it was kept as {aside.name}, and a new file was begun"
        made = guess.made or datetime.now().astimezone().isoformat(timespec="seconds")
        _write(folder, [*others, replace(guess, made=made)])
    return warning


def keep_measured(folder: Path | str, guess: Guess, measured: str | float) -> None:
    """Note beside a prediction that was made what was measured.

    Raises:
        UnreadableGuesses, OSError: as above.
    """
    folder = Path(folder)
    with _locked(folder):
        known = read_guesses(folder)
        same = [(each.key, each.question) == (guess.key, guess.question) for each in known]
        after = [replace(each, measured=measured) if hit else each for each, hit in zip(known, same, strict=True)]
        if after != known:
            _write(folder, after)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / LOCK, timeout=10):
            yield
    except Timeout:
        raise OSError(f"another program keeps {folder / LOCK} locked") from None


def _write(folder: Path, guesses: list[Guess]) -> None:
    record = {"about": _ABOUT, "predictions": [asdict(guess) for guess in guesses]}
    write_atomically(folder / FILE, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"predictions.unreadable-{number}.json")).exists():
        number += 1
    path.rename(aside)
    return aside


def _as_guess(entry: dict[str, Any]) -> Guess:
    guess = Guess(**entry)
    for name in ("key", "question", "unit", "made"):
        if not isinstance(getattr(guess, name), str):
            raise TypeError(f"{name} must be text")
    for name in ("guess", "measured"):
        value = getattr(guess, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (number or isinstance(value, str) or (name == "measured" and value is None)):
            raise TypeError(f"{name} must be a number or text")
    return guess
