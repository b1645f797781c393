"""The right text, finish_reason and number of tokens."""

from __future__ import annotations


def expected_answer(answer: str, max_tokens: int) -> tuple[str, str, int]:
    """Text, finish_reason and completion_tokens: each byte is a token, and one more token ends the answer."""
    size = len(answer.encode())
    if max_tokens > size:
        return answer, "stop", size + 1
    return answer.encode()[:max_tokens].decode(errors="ignore"), "length", max_tokens
