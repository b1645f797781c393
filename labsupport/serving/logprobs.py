"""Log-probabilities in OpenAI's two formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labsupport.inference.detokenize import Detokenizer
from labsupport.lm.tokenizer import Tokenizer, bytes_of

_INCOMPLETE = "\ufffd"


def completion_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[dict[int, float] | None], offset: int, top: int
) -> dict[str, Any]:
    """Of `/v1/completions`: parallel lists, with null for a token that has none: a text's first.

    ``offset``: how many characters of text precede these tokens.
    """
    decoder = Detokenizer(tokenizer)
    offsets = []
    for token in token_ids:
        offsets.append(offset)
        offset += len(decoder.push(token))
    return {
        "tokens": [token_text(tokenizer, token) for token in token_ids],
        "token_logprobs": [each and _number(each[token]) for token, each in zip(token_ids, logprobs, strict=True)],
        "top_logprobs": [
            each and {token_text(tokenizer, token): _number(value) for token, value in _most_likely(each, taken, top)}
            for taken, each in zip(token_ids, logprobs, strict=True)
        ]
        if top
        else None,
        "text_offset": offsets,
    }


def chat_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[dict[int, float]], top: int
) -> dict[str, Any]:
    """Of `/v1/chat/completions`: one object per token."""

    def entry(token: int, value: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, token),
            "logprob": _number(value),
            "bytes": token_bytes(tokenizer, token),
        }

    content = []
    for taken, each in zip(token_ids, logprobs, strict=True):
        alternatives = sorted(each.items(), key=lambda item: -item[1])[:top]
        content.append(entry(taken, each[taken]) | {"top_logprobs": [entry(*item) for item in alternatives]})
    return {"content": content, "refusal": None}


def _number(logprob: float) -> float:
    """-9999 for probability zero, as vLLM writes it: JSON has no infinity."""
    return max(logprob, -9999.0)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A name for the token: its text; or its byte or id, if it is not a whole character or not text at all."""
    own = token_bytes(tokenizer, token)
    if own:
        try:
            return bytes(own).decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)
    return f"token_id:{token}"


def token_bytes(tokenizer: Tokenizer, token: int) -> list[int] | None:
    own = bytes_of(tokenizer, token)
    if own is not None:
        return list(own) if own else None
    text = tokenizer.decode([token])
    return list(text.encode()) if text and _INCOMPLETE not in text else None


def _most_likely(values: dict[int, float], taken: int, top: int) -> list[tuple[int, float]]:
    """As OpenAI does: the ``top`` most likely, and the one that was taken if it is not among them."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    kept = ordered[:top]
    return kept if any(token == taken for token, _ in kept) else [*kept, (taken, values[taken])]
