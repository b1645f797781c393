"""From a request's fields to what the engine takes: token ids and sampling parameters, one pair per choice.

Everything that can be refused before the engine is involved is refused here, as a 400 that names the field.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labsupport.inference.sampling import SamplingParams
from labsupport.serving.backend import Backend
from labsupport.serving.chat_template import ChatTemplate
from labsupport.serving.errors import ApiError
from labsupport.serving.protocol import MAX_CHOICES, ChatRequest, CompletionRequest

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for completions

_LONG_TEXT = 20_000  # characters: encoding more than this would hold up the event loop


@dataclass(frozen=True)
class Inputs:
    """Choice ``i`` continues ``prompts[i // n]`` with ``params[i]``.

    Attributes:
        prompts: token ids.
        params: ``n`` per prompt. Seeded choices of one prompt have different seeds, or they would all be the same.
        kept: how many of a prompt's ``n`` choices the client gets: the best ones (best_of.py).
    """

    prompts: list[list[int]]
    params: list[SamplingParams]
    n: int
    kept: int


async def completion_inputs(body: CompletionRequest, backend: Backend) -> Inputs:
    """One or several prompts, as text or as token ids.

    Raises:
        ApiError: fields contradict each other, there are too many choices, or a prompt and its output are too long.
    """
    _check_stream_options(body)
    n = body.n or 1
    generated = n if body.best_of is None else body.best_of
    if generated < n:
        raise ApiError(400, f"best_of must be at least n ({n}); got {generated}", "best_of", "invalid_value")
    if generated > n and body.stream:
        message = "best_of above n cannot be streamed: which are best is known at the end"
        raise ApiError(400, message, "best_of", "invalid_value")
    prompts = await _token_prompts(body, backend)
    _check_choices(len(prompts), generated, backend)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    logprobs = 0 if generated > n and body.logprobs is None else body.logprobs
    params = [_sampling_params(body, len(prompt), max_tokens, logprobs, backend) for prompt in prompts]
    if body.echo:
        params = [replace(each, prompt_logprobs=body.logprobs) for each in params]
    return _inputs(prompts, params, generated, n)


def chat_inputs(body: ChatRequest, backend: Backend, template: ChatTemplate) -> Inputs:
    """One prompt, which ``template`` makes of the messages.

    Raises:
        ApiError: as for `completion_inputs`.
    """
    _check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs is only allowed when logprobs is true", "top_logprobs", "invalid_value")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        message = "max_tokens and max_completion_tokens mean the same: send one of them"
        raise ApiError(400, message, "max_tokens", "invalid_value")
    prompt, ends = template(body.messages)
    n = body.n or 1
    _check_choices(1, n, backend)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _sampling_params(body, len(prompt), max_tokens, logprobs, backend)
    if ends and not body.ignore_eos:
        params = replace(params, stop_token_ids=[*(body.stop_token_ids or []), *ends])
    return _inputs([prompt], [params], n, n)


def _inputs(prompts: list[list[int]], params: Sequence[SamplingParams], n: int, kept: int) -> Inputs:
    return Inputs(prompts, [_nth(each, index) for each in params for index in range(n)], n, kept)


def _nth(params: SamplingParams, index: int) -> SamplingParams:
    if params.seed is None or index == 0:
        return params
    return replace(params, seed=(params.seed + index) % 2**64)


def _sampling_params(
    body: CompletionRequest | ChatRequest,
    prompt_tokens: int,
    max_tokens: int | None,
    logprobs: int | None,
    backend: Backend,
) -> SamplingParams:
    """``max_tokens=None``: as many as the model has room for after the prompt."""
    room = backend.max_model_len - prompt_tokens
    wanted = max(room, 1) if max_tokens is None else max_tokens
    if wanted > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {backend.max_model_len} tokens. However, you requested "
            f"{prompt_tokens + wanted} tokens ({prompt_tokens} in the prompt, {wanted} in the completion). "
            "Please shorten the prompt or ask for fewer tokens.",
            "messages" if isinstance(body, ChatRequest) else "prompt",
            "context_length_exceeded",
        )
    least = body.min_tokens or 0
    if least > wanted:
        message = f"min_tokens must be at most max_tokens ({wanted} here); got {least}"
        raise ApiError(400, message, "min_tokens", "invalid_value")
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    unknown = [token for token in bias if token >= backend.tokenizer.vocab_size]
    if unknown:
        message = f"logit_bias must name tokens of 0..{backend.tokenizer.vocab_size - 1}; got {unknown[0]}"
        raise ApiError(400, message, "logit_bias", "invalid_value")
    return SamplingParams(
        max_tokens=wanted,
        min_tokens=least,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),  # vLLM: -1 means all as well
        seed=None if body.seed is None else body.seed % 2**64,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        stop_token_ids=body.stop_token_ids or (),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias or None,
    )


async def _token_prompts(body: CompletionRequest, backend: Backend) -> list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [await _encode(prompt, backend)]
    if isinstance(prompt[0], int):
        return [list(prompt)]  # type: ignore[arg-type]
    return [await _encode(each, backend) if isinstance(each, str) else list(each) for each in prompt]  # type: ignore[arg-type]


async def _encode(text: str, backend: Backend) -> list[int]:
    if len(text) <= _LONG_TEXT:
        return backend.tokenizer.encode(text)
    return await asyncio.to_thread(backend.tokenizer.encode, text)


def _check_stream_options(body: CompletionRequest | ChatRequest) -> None:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is only allowed when stream is true", "stream_options", "invalid_value")


def _check_choices(num_prompts: int, n: int, backend: Backend) -> None:
    """Refuse what could never be accepted as a whole."""
    most = min(MAX_CHOICES, backend.max_in_flight or MAX_CHOICES)
    if num_prompts * n > most:
        raise ApiError(
            400, f"prompts times n must be at most {most} on this server; got {num_prompts} times {n}", "n", "too_many"
        )
