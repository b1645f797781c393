"""The JSON of an answer, whole or in chunks: what completions and chat have in common.

The engine's outputs are cumulative; a chunk holds what is new since the chunk before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from labsupport.inference.request import RequestOutput
from labsupport.serving.best_of import best_outputs
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
        options = body.stream_options
        self.with_usage = options is not None and bool(options.include_usage)
        self.with_usage_so_far = self.with_usage and options is not None and bool(options.continuous_usage_stats)
        self._newest: dict[int, RequestOutput] = {}
        self._sent = [(0, 0)] * len(inputs.params)  # characters and tokens of each choice

    def whole(self, outputs: Sequence[RequestOutput]) -> Json:
        """``outputs``: the last one of each choice."""
        best = best_outputs(outputs, self.inputs.n, self.inputs.kept)
        choices = [self._whole_choice(index, outputs[index]) | {"index": place} for place, index in enumerate(best)]
        return {**self.head, "choices": choices, "usage": usage(self.inputs, dict(enumerate(outputs)))}

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
        self._newest[index] = output
        return [self._chunk(self._next_choice(index, output, characters, tokens))]

    def closing(self, outputs: Sequence[RequestOutput]) -> list[Json]:
        """Chunks after the last token."""
        if not self.with_usage:
            return []
        return [{**self.chunk_head, "choices": [], "usage": usage(self.inputs, dict(enumerate(outputs)))}]

    def _chunk(self, choice: Json) -> Json:
        chunk = {**self.chunk_head, "choices": [choice]}
        if self.with_usage_so_far:
            return chunk | {"usage": usage(self.inputs, self._newest)}
        return chunk | {"usage": None} if self.with_usage else chunk

    @abstractmethod
    def _whole_choice(self, index: int, output: RequestOutput) -> Json: ...

    @abstractmethod
    def _opening_choices(self) -> list[Json]: ...

    @abstractmethod
    def _next_choice(self, index: int, output: RequestOutput, characters: int, tokens: int) -> Json:
        """Of ``output`` without its first ``characters`` and ``tokens``, which were sent before."""


def usage(inputs: Inputs, outputs: Mapping[int, RequestOutput]) -> Json:
    """``outputs``: by their choice; while a stream runs, of those that have begun."""
    prompt = sum(len(each) for each in inputs.prompts)
    completion = sum(len(each.token_ids) for each in outputs.values())
    first = [output for index, output in outputs.items() if index % inputs.n == 0]  # a prompt is counted once
    cached = sum(each.num_cached_tokens for each in first)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
