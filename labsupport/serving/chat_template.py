"""Chat templates: a conversation becomes a prompt.

A model understands roles only in the form it was trained on. For SmolLM2-Instruct that is ChatML, with control tokens
around each message. Control tokens are inserted by id and what people wrote is encoded as plain text, so a message that
contains the characters ``<|im_end|>`` cannot end its own turn and speak as the system.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as HuggingFaceTokenizer

from labsupport.lm.tokenizer import Tokenizer
from labsupport.serving.protocol import Message

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

ChatTemplate = Callable[[Sequence[Message]], tuple[list[int], list[int]]]  # -> prompt, token ids that end the answer


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """ChatML if the tokenizer has its control tokens, else `plain_template`."""
    inner = getattr(tokenizer, "tokenizer", None)
    if isinstance(inner, HuggingFaceTokenizer) and inner.token_to_id("<|im_start|>") is not None:
        return chatml_template(inner)
    return plain_template(tokenizer)


def chatml_template(tokenizer: HuggingFaceTokenizer) -> ChatTemplate:
    start, end = (tokenizer.token_to_id(each) for each in ("<|im_start|>", "<|im_end|>"))
    if start is None or end is None:
        raise ValueError("tokenizer must have the tokens <|im_start|> and <|im_end|>; it lacks one")
    literal = copy.deepcopy(tokenizer)
    literal.encode_special_tokens = True  # "<|im_end|>" in a text is just ten characters

    def encode(text: str) -> list[int]:
        return literal.encode(text, add_special_tokens=False).ids

    def render(messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        turns = [("system" if each.role == "developer" else each.role, each.text) for each in messages]
        if turns[0][0] != "system":
            turns.insert(0, ("system", SMOLLM2_SYSTEM))
        prompt: list[int] = []
        for role, text in turns:
            prompt += [start, *encode(f"{role}\n{text}"), end, *encode("\n")]
        return [*prompt, start, *encode("assistant\n")], [end]

    return render


def plain_template(tokenizer: Tokenizer) -> ChatTemplate:
    """For models without chat training, `tiny` among them: the roles as words.

    ``System: ...`` / ``User: ...`` / ``Assistant: ...``, separated by blank lines, with ``Assistant:`` at the end. The
    answer is whatever the model thinks comes next.
    """

    def render(messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        names = {"developer": "System"}
        turns = [f"{names.get(each.role, each.role.capitalize())}: {each.text}" for each in messages]
        return tokenizer.encode("\n\n".join([*turns, "Assistant:"])), []

    return render
