"""Text out of tokens while they come: what is handed out never has to be taken back.

Two things can still change: the bytes of a character whose rest is to come, and the beginning of what may become a
stop string. Both are held back until they are decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from labsupport.lm.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes bytes to that are no character
_LONGEST = 3  # bytes of a character (of at most 4) that can be there without it being complete


class Detokenizer:
    """`push` a token, get the new text. What was pushed decodes to the text of all calls, up to an incomplete end.

    Only a few tokens are decoded each time: from the last place before which all is decided, and the stretch before
    that, since some tokenizers drop a leading space.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._window: list[int] = []
        self._num_context = 0  # tokens of the window that were decided before
        self._shown = ""  # of the window's text

    def push(self, token_id: int) -> str:
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
    """The text of one request: `push` tokens until it returns True, which is where a stop string was found."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.text = ""  # handed out: final
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = tuple(stop)
        self._held = ""  # a beginning of a stop string, perhaps

    def push(self, token_id: int) -> bool:
        held = self._held + self._detokenizer.push(token_id)
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
        """No more tokens: what began like a stop string was none. An incomplete character at the end is dropped."""
        self.text += self._held
        self._held = ""


def longest_overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that is a beginning, but not all, of a stop string."""
    longest = min(len(text), max((len(stop) - 1 for stop in stops), default=0))
    for length in range(longest, 0, -1):
        if any(len(stop) > length and stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
