"""The JSON of an answer, whole or in chunks: what completions and chat have in common.

The engine's outputs are cumulative; a chunk holds what is new since the chunk before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from labsupport.inference.request import RequestOutput
from labsupport.serving.inputs import Inputs
from labsupport.serving.protocol import ChatRequest, CompletionRequest

Json = dict[str, Any]


class Answer(ABC):
    """The answer to one request.

    Args:
        head, chunk_head: what stands before ``choices``, in a whole answer and in each chunk of a stream.
        logprobs: whether they are wanted; then a token that adds no text is worth a chunk too.
    """

    def __init__(
        self, head: Json, chunk_head: Json, body: CompletionRequest | ChatRequest, inputs: Inputs, logprobs: bool
    ) -> None:
        self.head, self.chunk_head, self.inputs, self.logprobs = head, chunk_head, inputs, logprobs
        self.with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._sent = [(0, 0)] * len(inputs.params)  # characters and tokens of each choice

    def whole(self, outputs: Sequence[RequestOutput]) -> Json:
        """``outputs``: the last one of each choice."""
        choices = [self._whole_choice(index, output) for index, output in enumerate(outputs)]
        return {**self.head, "choices": choices, "usage": usage(self.inputs, outputs)}

    def opening(self) -> list[Json]:
        """Chunks before the first token."""
        return [self._chunk(choice) for choice in self._opening_choices()]

    def chunks(self, index: int, output: RequestOutput) -> list[Json]:
        """The chunk for what ``output`` adds to a choice; none if it adds nothing that a client could see."""
        characters, tokens = self._sent[index]
        text, more_tokens = output.text[characters:], len(output.token_ids) > tokens
        if not (text or output.finished or (self.logprobs and more_tokens)):
            return []
        self._sent[index] = len(output.text), len(output.token_ids)
        return [self._chunk(self._next_choice(index, output, characters, tokens))]

    def closing(self, outputs: Sequence[RequestOutput]) -> list[Json]:
        """Chunks after the last token."""
        return [{**self.chunk_head, "choices": [], "usage": usage(self.inputs, outputs)}] if self.with_usage else []

    def _chunk(self, choice: Json) -> Json:
        chunk = {**self.chunk_head, "choices": [choice]}
        return chunk | {"usage": None} if self.with_usage else chunk

    @abstractmethod
    def _whole_choice(self, index: int, output: RequestOutput) -> Json: ...

    @abstractmethod
    def _opening_choices(self) -> list[Json]: ...

    @abstractmethod
    def _next_choice(self, index: int, output: RequestOutput, characters: int, tokens: int) -> Json:
        """Of ``output`` without its first ``characters`` and ``tokens``, which were sent before."""


def usage(inputs: Inputs, outputs: Sequence[RequestOutput]) -> Json:
    prompt = sum(len(each) for each in inputs.prompts)
    completion = sum(len(each.token_ids) for each in outputs)
    cached = sum(each.num_cached_tokens for each in outputs[:: inputs.n])  # of each prompt once
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
