"""`POST /v1/chat/completions`: a conversation goes on, once a template has made a prompt of it.

A model understands roles only in the form it was trained on. SmolLM2-Instruct's is ChatML, with control tokens around
each message. Control tokens are put in by number and what people wrote is encoded as plain text: a message that
contains the characters ``<|im_end|>`` cannot end itself and speak as the system.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response
from tokenizers import Tokenizer as HuggingFaceTokenizer

from labsupport.inference.request import RequestOutput
from labsupport.lm.tokenizer import Tokenizer
from labsupport.serving.backend import Backend
from labsupport.serving.completions import check_supported, start_stream
from labsupport.serving.context import Context
from labsupport.serving.errors import ApiError
from labsupport.serving.generation import Generation, check_choices, sampling_params
from labsupport.serving.logprobs import chat_logprobs
from labsupport.serving.protocol import ChatRequest, Message
from labsupport.serving.sse import until_disconnect

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

ChatTemplate = Callable[[Sequence[Message]], tuple[list[int], list[int]]]  # -> prompt, tokens that end the answer


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """ChatML if the tokenizer has its control tokens, else `plain_template`."""
    inner = getattr(tokenizer, "tokenizer", None)
    if isinstance(inner, HuggingFaceTokenizer) and inner.token_to_id("<|im_start|>") is not None:
        return chatml_template(inner)
    return plain_template(tokenizer)


def chatml_template(tokenizer: HuggingFaceTokenizer) -> ChatTemplate:
    start, end = (tokenizer.token_to_id(each) for each in ("<|im_start|>", "<|im_end|>"))
    if start is None or end is None:
        raise ValueError("tokenizer must have the tokens <|im_start|> and <|im_end|>; it has not")
    literal = copy.deepcopy(tokenizer)
    literal.encode_special_tokens = True  # "<|im_end|>" in a text is ten characters

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
    """For models that were never taught to talk, `tiny` among them: the roles as words.

    ``System: ...`` / ``User: ...`` / ``Assistant: ...``, a blank line between them, ``Assistant:`` at the end. The
    answer is whatever the model thinks comes next.
    """

    def render(messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        names = {"developer": "System"}
        turns = [f"{names.get(each.role, each.role.capitalize())}: {each.text}" for each in messages]
        return tokenizer.encode("\n\n".join([*turns, "Assistant:"])), []

    return render


async def chat(
    backend: Backend, template: ChatTemplate, body: ChatRequest, request: Request, context: Context
) -> Response:
    check_supported(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs is only allowed when logprobs is true", "top_logprobs", "invalid_value")
    prompt, ends = template(body.messages)
    n = body.n or 1
    check_choices(backend, 1, n)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    if ends and not body.ignore_eos:
        body = body.model_copy(update={"stop_token_ids": [*(body.stop_token_ids or []), *ends]})
    params = sampling_params(backend, body, prompt, max_tokens, logprobs)
    observation = context.observe(len(prompt), bool(body.stream))
    generation = Generation(backend, context.engine_id, [prompt], [params], n, observation, bool(body.stream))
    answer = _Answer(f"chatcmpl-{context.engine_id}", backend, generation, body)
    if not body.stream:
        outputs = await until_disconnect(request, generation.finish())
        return JSONResponse(answer.whole(outputs))
    return await start_stream(request, generation, answer)


class _Answer:
    """The JSON of one request, whole or in chunks."""

    def __init__(self, name: str, backend: Backend, generation: Generation, body: ChatRequest) -> None:
        self.backend, self.generation, self.body = backend, generation, body
        self.head = {"id": name, "created": generation.created, "model": backend.model_name}
        self.with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._sent = [(0, 0)] * len(generation.outputs)

    def whole(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": output.text, "refusal": None},
                "logprobs": self._logprobs(output, 0),
                "finish_reason": output.finish_reason,
            }
            for index, output in enumerate(outputs)
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self.generation.usage()}

    def opening(self) -> list[dict[str, Any]]:
        return [
            self._chunk(index, {"role": "assistant", "content": ""}, None, None) for index in range(len(self._sent))
        ]

    def chunks(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        characters, tokens = self._sent[index]
        text = output.text[characters:]
        if not text and not output.finished and (not self.body.logprobs or tokens == len(output.token_ids)):
            return []
        self._sent[index] = len(output.text), len(output.token_ids)
        delta = {"content": text} if text or not output.finished else {}
        return [self._chunk(index, delta, self._logprobs(output, tokens), output.finish_reason)]

    def closing(self) -> list[dict[str, Any]]:
        if not self.with_usage:
            return []
        usage = self.generation.usage()
        return [{**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage}]

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk: dict[str, Any] = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        return chunk | {"usage": None} if self.with_usage else chunk

    def _logprobs(self, output: RequestOutput, start: int) -> dict[str, Any] | None:
        if not self.body.logprobs or output.logprobs is None:
            return None
        tokens, values = output.token_ids[start:], output.logprobs[start:]
        return chat_logprobs(self.backend.tokenizer, tokens, values, self.body.top_logprobs or 0)
