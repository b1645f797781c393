"""The answer of `POST /v1/completions`."""

from __future__ import annotations

import time
from typing import Any

from labsupport.inference.request import RequestOutput
from labsupport.serving.answer import Answer
from labsupport.serving.backend import Backend
from labsupport.serving.inputs import Inputs
from labsupport.serving.logprobs import completion_logprobs
from labsupport.serving.protocol import CompletionRequest


class CompletionAnswer(Answer):
    """Text that continues the prompts; after the prompts themselves if the client asked for ``echo``."""

    def __init__(self, name: str, backend: Backend, body: CompletionRequest, inputs: Inputs) -> None:
        head = {
            "id": f"cmpl-{name}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": backend.model_name,
        }
        super().__init__(head, head, body, inputs, logprobs=body.logprobs is not None)
        self.tokenizer, self.top_logprobs = backend.tokenizer, body.logprobs or 0
        self.echoed = [backend.tokenizer.decode(prompt) if body.echo else "" for prompt in inputs.prompts]

    def _whole_choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        return self._next_choice(index, output, 0, 0) | {"text": self._echo(index) + output.text}

    def _opening_choices(self) -> list[dict[str, Any]]:
        if self.logprobs:  # those of the prompt are not there yet: they come with the first token
            return []
        echoes = [self._echo(index) for index in range(len(self.inputs.params))]
        return [_choice(index, text, None, None) for index, text in enumerate(echoes) if text]

    def _next_choice(self, index: int, output: RequestOutput, characters: int, tokens: int) -> dict[str, Any]:
        text = output.text[characters:]
        if self.logprobs and not characters and not tokens:
            text = self._echo(index) + text
        return _choice(index, text, self._logprobs(index, output, characters, tokens), output.finish_reason)

    def _echo(self, index: int) -> str:
        return self.echoed[index // self.inputs.n]

    def _logprobs(self, index: int, output: RequestOutput, characters: int, tokens: int) -> dict[str, Any] | None:
        """Of the tokens from ``tokens`` on; after those of the prompt if it is echoed and these are the first."""
        if not self.logprobs or output.logprobs is None:
            return None
        token_ids = output.token_ids[tokens:]
        values: list[dict[int, float] | None] = [*output.logprobs[tokens:]]
        offset = len(self._echo(index)) + characters
        if output.prompt_logprobs is not None and not characters and not tokens:
            token_ids, values, offset = output.prompt_token_ids + token_ids, output.prompt_logprobs + values, 0
        return completion_logprobs(self.tokenizer, token_ids, values, offset, self.top_logprobs)


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
