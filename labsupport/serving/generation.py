"""One request of a client as one or several of the engine's: its prompts times ``n``, told as they go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from labsupport.inference.request import RequestOutput
from labsupport.inference.sampling import SamplingParams
from labsupport.serving.backend import Backend, Unavailable
from labsupport.serving.errors import ApiError
from labsupport.serving.protocol import MAX_CHOICES, ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from labsupport.serving.observe import Observation

_LONG_TEXT = 20_000  # characters: encoding more than this would hold up the event loop


async def encode(backend: Backend, text: str) -> list[int]:
    if len(text) <= _LONG_TEXT:
        return backend.tokenizer.encode(text)
    return await asyncio.to_thread(backend.tokenizer.encode, text)


def sampling_params(
    backend: Backend,
    body: CompletionRequest | ChatRequest,
    prompt: list[int],
    max_tokens: int | None,
    logprobs: int | None,
) -> SamplingParams:
    """Of one prompt. ``max_tokens=None``: as many as the model has room for.

    Raises:
        ApiError: prompt and output are longer than the model allows.
    """
    room = backend.max_model_len - len(prompt)
    wanted = max(room, 1) if max_tokens is None else max_tokens
    if wanted > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {backend.max_model_len} tokens. However, you requested "
            f"{len(prompt) + wanted} tokens ({len(prompt)} in the prompt, {wanted} in the completion). "
            "Please shorten the prompt or ask for fewer tokens.",
            "messages" if isinstance(body, ChatRequest) else "prompt",
            "context_length_exceeded",
        )
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return SamplingParams(
        max_tokens=wanted,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),  # vLLM: -1 means all as well
        seed=None if body.seed is None else body.seed % 2**64,
        stop=stop,
        stop_token_ids=body.stop_token_ids or (),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def check_choices(backend: Backend, num_prompts: int, n: int) -> None:
    """Raises `ApiError` if the request could never be accepted as a whole."""
    most = min(MAX_CHOICES, backend.max_in_flight or MAX_CHOICES)
    if num_prompts * n > most:
        raise ApiError(
            400, f"prompts times n must be at most {most} on this server; got {num_prompts} times {n}", "n", "too_many"
        )


class Generation:
    """All choices of a request: choice ``i`` continues prompt ``i // n``.

    Each choice of a seeded request draws from a seed of its own, else all would be the same.
    """

    def __init__(
        self,
        backend: Backend,
        request_id: str,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        n: int,
        observation: Observation,
        stream: bool,
    ) -> None:
        self.prompts, self.n, self.observation = prompts, n, observation
        self.created = int(time.time())
        self._streams = [
            backend.stream(f"{request_id}-{index}", prompts[index // n], _nth(params[index // n], index % n), stream)
            for index in range(len(prompts) * n)
        ]
        self.outputs: list[RequestOutput | None] = [None] * len(self._streams)
        observation.choices = len(self._streams)

    async def finish(self) -> list[RequestOutput]:
        """The last output of each choice. If one fails, all are aborted."""
        async with aclosing(self.updates()) as updates:
            async for _ in updates:
                pass
        return self.final

    @property
    def final(self) -> list[RequestOutput]:
        return [output for output in self.outputs if output is not None]

    async def updates(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Index and newest output of a choice, whenever there is one. A slow reader gets fewer, never old ones."""
        newest: dict[int, RequestOutput] = {}
        errors: list[BaseException] = []
        changed = asyncio.Event()

        async def follow(index: int) -> None:
            try:
                async with aclosing(_checked(self._streams[index])) as outputs:
                    async for output in outputs:
                        newest[index] = output
                        changed.set()
            except Exception as error:
                errors.append(error)
                changed.set()

        if len(self._streams) == 1:  # the usual case needs no task
            async with aclosing(_checked(self._streams[0])) as outputs:
                async for output in outputs:
                    self._note(0, output)
                    yield 0, output
            return
        tasks = [asyncio.ensure_future(follow(index)) for index in range(len(self._streams))]
        try:
            remaining = len(tasks)
            while remaining:
                await changed.wait()
                changed.clear()
                if errors:
                    raise errors[0]
                ready, newest = newest, {}
                for index, output in ready.items():
                    self._note(index, output)
                    remaining -= output.finished
                    yield index, output
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _note(self, index: int, output: RequestOutput) -> None:
        self.outputs[index] = output
        self.observation.update(index, output)
        if output.finish_reason == "abort":
            raise Unavailable("the server shut down before the request was through")

    def usage(self) -> dict[str, object]:
        prompt = sum(len(each) for each in self.prompts)
        completion = sum(len(each.token_ids) for each in self.final)
        cached = sum(each.num_cached_tokens for each in self.final[:: self.n])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


async def _checked(stream: AsyncIterator[RequestOutput]) -> AsyncGenerator[RequestOutput, None]:
    """A backend's `ValueError` is about the prompt, and the client's; one of any other place would be ours."""
    try:
        async for output in stream:
            yield output
    except ValueError as error:
        raise ApiError(400, str(error), "prompt", "invalid_value") from error
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


def _nth(params: SamplingParams, index: int) -> SamplingParams:
    if params.seed is None or index == 0:
        return params
    return replace(params, seed=(params.seed + index) % 2**64)
