"""The answer of `POST /v1/chat/completions`."""

from __future__ import annotations

import time
from typing import Any

from labsupport.inference.request import RequestOutput
from labsupport.serving.answer import Answer
from labsupport.serving.backend import Backend
from labsupport.serving.inputs import Inputs
from labsupport.serving.logprobs import chat_logprobs
from labsupport.serving.protocol import ChatRequest


class ChatAnswer(Answer):
    """A message of the assistant; in a stream its role comes first, then its text in pieces."""

    def __init__(self, name: str, backend: Backend, body: ChatRequest, inputs: Inputs) -> None:
        head = {"id": f"chatcmpl-{name}", "created": int(time.time()), "model": backend.model_name}
        whole, chunk = ({**head, "object": kind} for kind in ("chat.completion", "chat.completion.chunk"))
        super().__init__(whole, chunk, body, inputs, logprobs=bool(body.logprobs))
        self.tokenizer, self.top_logprobs = backend.tokenizer, body.top_logprobs or 0

    def _whole_choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": output.text, "refusal": None},
            "logprobs": self._logprobs(output, 0),
            "finish_reason": output.finish_reason,
        }

    def _opening_choices(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [_delta_choice(index, delta, None, None) for index in range(len(self.inputs.params))]

    def _next_choice(self, index: int, output: RequestOutput, characters: int, tokens: int) -> dict[str, Any]:
        text = output.text[characters:]
        delta = {"content": text} if text or not output.finished else {}
        return _delta_choice(index, delta, self._logprobs(output, tokens), output.finish_reason)

    def _logprobs(self, output: RequestOutput, tokens: int) -> dict[str, Any] | None:
        if not self.logprobs or output.logprobs is None:
            return None
        return chat_logprobs(self.tokenizer, output.token_ids[tokens:], output.logprobs[tokens:], self.top_logprobs)


def _delta_choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
