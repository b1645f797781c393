"""Log-probabilities in OpenAI's two formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labsupport.inference.detokenize import Detokenizer
from labsupport.lm.tokenizer import ByteTokenizer, Tokenizer

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
        "token_logprobs": [each and each[token] for token, each in zip(token_ids, logprobs, strict=True)],
        "top_logprobs": [
            each and {token_text(tokenizer, token): value for token, value in _most_likely(each, taken, top)}
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
        return {"token": token_text(tokenizer, token), "logprob": value, "bytes": token_bytes(tokenizer, token)}

    content = []
    for taken, each in zip(token_ids, logprobs, strict=True):
        alternatives = sorted(each.items(), key=lambda item: -item[1])[:top]
        content.append(entry(taken, each[taken]) | {"top_logprobs": [entry(*item) for item in alternatives]})
    return {"content": content, "refusal": None}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A name for the token: its text; or its byte or id, if it is not a whole character or not text at all."""
    text = tokenizer.decode([token])
    if text and _INCOMPLETE not in text:
        return text
    if isinstance(tokenizer, ByteTokenizer) and token != tokenizer.eos_token_id:
        return f"bytes:\\x{token:02x}"
    return f"token_id:{token}"


def token_bytes(tokenizer: Tokenizer, token: int) -> list[int] | None:
    if isinstance(tokenizer, ByteTokenizer):
        return [token]
    text = tokenizer.decode([token])
    return list(text.encode()) if text and _INCOMPLETE not in text else None


def _most_likely(values: dict[int, float], taken: int, top: int) -> list[tuple[int, float]]:
    """As OpenAI does: the ``top`` most likely, and the one that was taken if it is not among them."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    kept = ordered[:top]
    return kept if any(token == taken for token, _ in kept) else [*kept, (taken, values[taken])]
