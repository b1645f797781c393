"""Text to token ids and back: bytes for `tiny`, Hugging Face `tokenizers` for real models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as HuggingFaceTokenizer

_SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}  # a step of sentencepiece's decoders


class Tokenizer(Protocol):
    """What a model's tokenizer must have. Three more are used where there are any:

    ``eos_token_ids`` (all that end a text; else ``eos_token_id`` alone), ``special_ids`` (special tokens by their text)
    and ``token_bytes(token_id)``, see `BpeTokenizer.token_bytes`.
    """

    eos_token_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Iterable[int]) -> str: ...


def ending_tokens(tokenizer: Tokenizer) -> set[int]:
    """All tokens that end a text."""
    return set(getattr(tokenizer, "eos_token_ids", (tokenizer.eos_token_id,)))


def bytes_of(tokenizer: Tokenizer, token_id: int) -> bytes | None:
    """What the token adds to the text; None where it cannot be said of a token by itself."""
    own = getattr(tokenizer, "token_bytes", None)
    return None if own is None else own(token_id)


class ByteTokenizer:
    """Each UTF-8 byte is a token. Byte 0, which does not occur in text, ends a document."""

    eos_token_id = 0
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Incomplete characters become U+FFFD; end-of-text is left out."""
        return bytes(token for token in token_ids if token != self.eos_token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == self.eos_token_id else bytes([token_id])


class BpeTokenizer:
    """A ``tokenizer.json`` as published with a model.

    A text begins with the token that the model was trained to see there (``<s>``, ``<|begin_of_text|>``), if its
    tokenizer adds one. Truncation and padding, which some files store, are off. Special tokens are not decoded.

    Args:
        eos_token_id: the token, or all tokens, that end a text; -1: none.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, eos_token_id: int | Sequence[int]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.eos_token_ids = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else -1
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        stored = json.loads(tokenizer.to_str())
        added = stored.get("added_tokens") or []
        self.special_ids: dict[str, int] = {each["content"]: each["id"] for each in added if each["special"]}
        self._added = {each["id"]: b"" if each["special"] else each["content"].encode() for each in added}
        steps = _steps(stored.get("decoder"))
        kinds = [step["type"] for step in steps]
        self._letters = byte_letters() if kinds == ["ByteLevel"] else None
        self._falls_back = (
            "ByteFallback" in kinds and {"type": "Replace", "pattern": {"String": "▁"}, "content": " "} in steps
        )
        self._strips = any(step["type"] == "Strip" and step["start"] == 1 for step in steps)

    @classmethod
    def from_file(cls, path: Path, eos_token_id: int | Sequence[int]) -> BpeTokenizer:
        return cls(HuggingFaceTokenizer.from_file(str(path)), eos_token_id)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of a whole sequence. Incomplete characters become U+FFFD."""
        tokens = list(token_ids)
        if not self._falls_back:
            return self.tokenizer.decode(tokens, skip_special_tokens=True)
        # the library damages a character that is whole where an incomplete one follows it
        text = b"".join(self.token_bytes(token) or b"" for token in tokens).decode("utf-8", errors="replace")
        return text[1:] if self._strips and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes | None:
        """What the token adds to a text that it does not begin; b"" for special tokens. None: its neighbours decide."""
        if self._letters is None and not self._falls_back:
            return None
        if token_id in self._added:
            return self._added[token_id]
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._letters is not None:
            known = all(letter in self._letters for letter in token)
            return bytes(self._letters[letter] for letter in token) if known else token.encode()
        alone = re.fullmatch("<0x([0-9A-F]{2})>", token)
        return bytes([int(alone[1], 16)]) if alone else token.replace("▁", " ").encode()


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if decoder is None else decoder.get("decoders", [decoder])


def byte_letters() -> dict[str, int]:
    """The letters that byte-level BPE writes bytes with (GPT-2's): printable ones as they are, others from U+0100."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}
