"""Chat templates: a conversation becomes a prompt.

A model understands roles only in the form it was trained on. For SmolLM2-Instruct that is ChatML, with control tokens
around each message. What people wrote is encoded as plain text, so a message that contains the characters
``<|im_end|>`` cannot end its own turn and speak as the system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as HuggingFaceTokenizer

from labsupport.lm.tokenizer import Tokenizer
from labsupport.serving.jinja_template import JinjaTemplate
from labsupport.serving.protocol import Message

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n" + SMOLLM2_SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)

ChatTemplate = Callable[[Sequence[Message]], tuple[list[int], list[int]]]  # -> prompt, token ids that end the answer


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """For a model that came without its own (jinja_template.py): ChatML if the tokenizer has its control tokens, else
    `plain_template`."""
    inner = getattr(tokenizer, "tokenizer", None)
    if isinstance(inner, HuggingFaceTokenizer) and inner.token_to_id("<|im_start|>") is not None:
        return JinjaTemplate(CHATML, tokenizer, {}, "ChatML")
    return plain_template(tokenizer)


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
