"""Text to token ids and back: bytes for `tiny`, Hugging Face `tokenizers` for real models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as HuggingFaceTokenizer


class Tokenizer(Protocol):
    eos_token_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Iterable[int]) -> str: ...


class ByteTokenizer:
    """Each UTF-8 byte is a token. Byte 0, which does not occur in text, ends a document."""

    eos_token_id = 0
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Incomplete characters become U+FFFD; end-of-text is left out."""
        return bytes(token for token in token_ids if token != self.eos_token_id).decode("utf-8", errors="replace")


class BpeTokenizer:
    """A ``tokenizer.json`` as published with a model; special tokens are neither added nor decoded."""

    def __init__(self, tokenizer: HuggingFaceTokenizer, eos_token_id: int) -> None:
        self.tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(cls, path: Path, eos_token_id: int) -> BpeTokenizer:
        return cls(HuggingFaceTokenizer.from_file(str(path)), eos_token_id)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
