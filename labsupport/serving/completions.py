"""`POST /v1/completions`: text goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from labsupport.inference.request import RequestOutput
from labsupport.serving.backend import Backend
from labsupport.serving.context import Context
from labsupport.serving.errors import ApiError, error_of
from labsupport.serving.generation import Generation, check_choices, encode, sampling_params
from labsupport.serving.logprobs import completion_logprobs
from labsupport.serving.protocol import CompletionRequest
from labsupport.serving.sse import DONE, EventStream, event, until_disconnect

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def complete(backend: Backend, body: CompletionRequest, request: Request, context: Context) -> Response:
    check_supported(body)
    n = body.n or 1
    prompts = await token_prompts(backend, body)
    check_choices(backend, len(prompts), n)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = [sampling_params(backend, body, prompt, max_tokens, body.logprobs) for prompt in prompts]
    echoed = [backend.tokenizer.decode(prompt) if body.echo else "" for prompt in prompts]
    observation = context.observe(sum(map(len, prompts)), bool(body.stream))
    generation = Generation(backend, context.engine_id, prompts, params, n, observation, bool(body.stream))
    answer = _Answer(f"cmpl-{context.engine_id}", backend, generation, body, echoed)
    if not body.stream:
        outputs = await until_disconnect(request, generation.finish())
        return JSONResponse(answer.whole(outputs))
    return await start_stream(request, generation, answer)


def check_supported(body: Any) -> None:
    """What the schema cannot say: fields that depend on one another."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is only allowed when stream is true", "stream_options", "invalid_value")
    if isinstance(body, CompletionRequest):
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise ApiError(400, f"best_of must be n ({body.n or 1}) here; got {body.best_of}", "best_of", "unsupported")
        if body.echo and body.logprobs is not None:
            raise ApiError(400, "echo with logprobs is not supported: prompts have none", "echo", "unsupported")


async def token_prompts(backend: Backend, body: CompletionRequest) -> list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [await encode(backend, prompt)]
    if isinstance(prompt[0], int):
        return [list(prompt)]  # type: ignore[arg-type]
    return [await encode(backend, each) if isinstance(each, str) else list(each) for each in prompt]  # type: ignore[arg-type]


async def start_stream(request: Request, generation: Generation, answer: Any) -> EventStream:
    """Once every choice is accepted: an error until then has a status, after it only an event."""
    updates = generation.updates()
    first: list[tuple[int, RequestOutput]] = []

    async def accepted() -> None:
        while any(output is None for output in generation.outputs):
            first.append(await anext(updates))

    try:
        await until_disconnect(request, accepted())
    except BaseException:
        await updates.aclose()
        raise
    return EventStream(_events(first, updates, answer))


async def _events(
    first: list[tuple[int, RequestOutput]], updates: AsyncGenerator[tuple[int, RequestOutput], None], answer: Any
) -> AsyncGenerator[bytes, None]:
    async with aclosing(updates):
        try:
            for opening in answer.opening():
                yield event(opening)
            for index, output in first:
                for chunk in answer.chunks(index, output):
                    yield event(chunk)
            async for index, output in updates:
                for chunk in answer.chunks(index, output):
                    yield event(chunk)
        except Exception as error:  # the status is sent: the `openai` client raises on this event
            yield event(error_of(error)[1])
            return
    for closing in answer.closing():
        yield event(closing)
    yield DONE


class _Answer:
    """The JSON of one request, whole or in chunks."""

    def __init__(
        self, name: str, backend: Backend, generation: Generation, body: CompletionRequest, echoed: list[str]
    ) -> None:
        self.backend, self.generation, self.body, self.echoed = backend, generation, body, echoed
        self.head = {
            "id": name, "object": "text_completion", "created": generation.created, "model": backend.model_name,
        }  # fmt: skip
        self.with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._sent = [(0, 0)] * len(generation.outputs)  # characters and tokens of each choice

    def whole(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        choices = []
        for index, output in enumerate(outputs):
            before = self.echoed[index // self.generation.n]
            logprobs = self._logprobs(output, 0, len(before))
            choices.append(_choice(index, before + output.text, logprobs, output.finish_reason))
        return {**self.head, "choices": choices, "usage": self.generation.usage()}

    def opening(self) -> list[dict[str, Any]]:
        return [
            self._chunk(_choice(index, text, None, None))
            for index in range(len(self._sent))
            if (text := self.echoed[index // self.generation.n])
        ]

    def chunks(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        characters, tokens = self._sent[index]
        text = output.text[characters:]
        if not text and not output.finished and (self.body.logprobs is None or tokens == len(output.token_ids)):
            return []
        logprobs = self._logprobs(output, tokens, characters + len(self.echoed[index // self.generation.n]))
        self._sent[index] = len(output.text), len(output.token_ids)
        return [self._chunk(_choice(index, text, logprobs, output.finish_reason))]

    def closing(self) -> list[dict[str, Any]]:
        return [{**self.head, "choices": [], "usage": self.generation.usage()}] if self.with_usage else []

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self.head, "choices": [choice]}
        return chunk | {"usage": None} if self.with_usage else chunk

    def _logprobs(self, output: RequestOutput, start: int, offset: int) -> dict[str, Any] | None:
        if self.body.logprobs is None or output.logprobs is None:
            return None
        tokens, values = output.token_ids[start:], output.logprobs[start:]
        return completion_logprobs(self.backend.tokenizer, tokens, values, offset, self.body.logprobs)


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
