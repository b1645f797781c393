"""Text from a stream of tokens: what has been handed out never has to be taken back.

Two things can still change: an incomplete character, and text that may turn out to be the beginning of a stop string.
Both are held back until they are decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from labsupport.lm.tokenizer import Tokenizer, bytes_of

_INCOMPLETE = "\ufffd"  # what tokenizers decode invalid bytes to
_LONGEST = 3  # bytes of an incomplete character, at most (a complete one has at most 4)


class Detokenizer:
    """`push` a token, get the new text. All tokens together decode to the texts of all calls, up to an incomplete end.

    Where tokens are bytes, which those of language models are, this is decoding UTF-8 piece by piece. Of other
    tokenizers each call decodes only a few tokens: those after the last place up to which the text is final, and those
    just before it, because some drop a leading space.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._window: list[int] = []
        self._num_context = 0  # tokens of the window that were decided before
        self._shown = ""  # of the window's text

    def push(self, token_id: int) -> str:
        added = bytes_of(self.tokenizer, token_id)
        if added is not None:
            return self._utf8.decode(added)
        self._window.append(token_id)
        text = self.tokenizer.decode(self._window)
        decided = text
        while len(text) - len(decided) < _LONGEST and decided.endswith(_INCOMPLETE):
            decided = decided[:-1]
        new = decided[len(self._shown) :]
        self._shown += new
        if decided == text:
            del self._window[: self._num_context]
            self._num_context = len(self._window)
            self._shown = self.tokenizer.decode(self._window)
        return new


class TextStream:
    """The text of one request: `push` tokens until it returns True, which means that a stop string was found."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.text = ""  # handed out, and final
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = tuple(stop)
        self._held = ""  # possibly the beginning of a stop string

    def push(self, token_id: int, stops: bool = True) -> bool:
        """``stops=False``: stop strings do not count yet."""
        held = self._held + self._detokenizer.push(token_id)
        if not stops:
            self.text += held
            return False
        found = [place for place in (held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.text += held[: min(found)]
            self._held = ""
            return True
        keep = longest_overlap(held, self._stop)
        self.text += held[: len(held) - keep]
        self._held = held[len(held) - keep :]
        return False

    def end(self) -> None:
        """No more tokens: the text held back was no stop string. An incomplete character is dropped."""
        self.text += self._held
        self._held = ""


def longest_overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of a stop string."""
    longest = min(len(text), max((len(stop) - 1 for stop in stops), default=0))
    for length in range(longest, 0, -1):
        if any(len(stop) > length and stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
