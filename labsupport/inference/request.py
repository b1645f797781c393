"""One request: its tokens, its state, and what its client sees of it.

waiting -> running -> finished          reasons to finish: "stop", "length", "abort"
             |  ^
             v  |
          preempted                     its blocks were taken; its tokens are kept, and read again later
"""

from __future__ import annotations

import operator
import random
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from labsupport.inference.detokenize import TextStream
from labsupport.inference.sampling import SamplingParams
from labsupport.lm.tokenizer import Tokenizer, ending_tokens

FinishReason = Literal["stop", "length", "abort"]


class RequestStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


_NEXT = {
    RequestStatus.WAITING: (RequestStatus.RUNNING, RequestStatus.FINISHED),
    RequestStatus.RUNNING: (RequestStatus.PREEMPTED, RequestStatus.FINISHED),
    RequestStatus.PREEMPTED: (RequestStatus.RUNNING, RequestStatus.FINISHED),
    RequestStatus.FINISHED: (),
}


@dataclass
class RequestTimes:
    """In seconds, by `time.monotonic`; None: not yet."""

    arrival: float = field(default_factory=time.monotonic)
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A request as it stands after a step. Everything is cumulative: ``text`` only grows at its end.

    Attributes:
        text: without the stop string or end-of-text token that ended it, and without incomplete characters.
        token_ids: all new tokens, including the one that ended the text.
        finish_reason: None while it continues, "stop" (end of text, stop string or token), "length" or "abort".
        logprobs: for each new token, token id -> log-probability; None if not requested.
        num_cached_tokens: tokens of the prompt that were found in the cache, and not computed.
        prompt_logprobs: for each token of the prompt, the first of which has none; None if not requested. Complete
            when the first new token is there.
    """

    request_id: Hashable
    prompt_token_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    logprobs: list[dict[int, float]] | None
    num_cached_tokens: int
    times: RequestTimes
    prompt_logprobs: list[dict[int, float] | None] | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class Request:
    """What engine and scheduler know about a request. ``arrival``: its place in the order, set by `Scheduler.add`."""

    def __init__(
        self, request_id: Hashable, prompt_token_ids: Sequence[int], params: SamplingParams, tokenizer: Tokenizer
    ) -> None:
        if not prompt_token_ids:
            raise ValueError("prompt_token_ids must hold at least one token; got none")
        self.request_id = request_id
        self.prompt_token_ids = list(prompt_token_ids)
        self.params = params
        self.arrival = -1
        self.output_token_ids: list[int] = []
        self.logprobs: list[dict[int, float]] = []
        self.prompt_logprobs: list[dict[int, float] | None] = [None]
        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.times = RequestTimes()
        specials: dict[str, int] = getattr(tokenizer, "special_ids", {})  # which are never text, and so no stop string
        named = {specials[stop] for stop in params.stop if stop in specials}
        self.stop_tokens = {*params.stop_token_ids, *named} | (set() if params.ignore_eos else ending_tokens(tokenizer))
        self._stream = TextStream(tokenizer, params.stop)
        self._random = random.Random(params.seed)

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output. The cache will have to hold all of them but the last."""
        return self.prompt_token_ids + self.output_token_ids

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def text(self) -> str:
        return self._stream.text

    @property
    def finished(self) -> bool:
        return self.status is RequestStatus.FINISHED

    def move_to(self, status: RequestStatus) -> None:
        if status not in _NEXT[self.status]:
            raise ValueError(f"status must not go from {self.status.value} to {status.value}: {self.request_id!r}")
        self.status = status
        if status is RequestStatus.PREEMPTED:
            self.num_preemptions += 1
        elif status is RequestStatus.RUNNING and self.times.first_scheduled is None:
            self.times.first_scheduled = time.monotonic()

    def next_uniform(self) -> float:
        """The number that picks its next token. One for each new token: reading a text again draws none."""
        return self._random.random()

    def append_token(self, token_id: int, logprobs: dict[int, float] | None = None) -> FinishReason | None:
        """Add a token. Returns why it is the last one (the caller must then call `finish`), or None."""
        if self.times.first_token is None:
            self.times.first_token = time.monotonic()
        self.output_token_ids.append(token_id)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        stops = len(self.output_token_ids) > self.params.min_tokens
        if token_id in self.stop_tokens or self._stream.push(token_id, stops):
            return "stop"
        return "length" if len(self.output_token_ids) >= self.params.max_tokens else None

    def fork(self, request_id: Hashable, params: SamplingParams, tokenizer: Tokenizer) -> Request:
        """A new request with the same tokens so far, which continues by ``params`` with a random stream of its own.

        Raises:
            ValueError: with ``params`` it would have ended already, or it needs log-probabilities that were not kept.
        """
        if params.logprobs is not None and self.params.logprobs is None:
            raise ValueError(f"sampling_params must have logprobs=None to fork {self.request_id!r}, which has none")
        child = Request(request_id, self.prompt_token_ids, params, tokenizer)
        logprobs: Sequence[dict[int, float] | None] = self.logprobs or [None] * len(self.output_token_ids)
        for token, each in zip(self.output_token_ids, logprobs, strict=True):
            if child.append_token(token, None if params.logprobs is None else each) is not None:
                raise ValueError(
                    f"sampling_params must let the fork of {self.request_id!r} continue after its "
                    f"{len(self.output_token_ids)} tokens so far; got max_tokens = {params.max_tokens}, "
                    f"stop = {params.stop}"
                )
        child.num_cached_tokens = self.num_cached_tokens
        return child

    def finish(self, reason: FinishReason) -> None:
        self.move_to(RequestStatus.FINISHED)
        self.finish_reason = reason
        self.times.finished = time.monotonic()
        self._stream.end()

    def output(self) -> RequestOutput:
        return RequestOutput(
            self.request_id, self.prompt_token_ids, self.text, self.output_token_ids.copy(), self.finish_reason,
            None if self.params.logprobs is None else self.logprobs.copy(), self.num_cached_tokens, self.times,
            None if self.params.prompt_logprobs is None else self.prompt_logprobs.copy(),
        )  # fmt: skip


def token_list(prompt: Sequence[int]) -> list[int]:
    """
    Raises:
        ValueError: an element is not an integer.
    """
    try:
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise ValueError(f"prompt must be a string or token ids; got {prompt!r:.60}") from None


def check_prompt(token_ids: list[int], params: SamplingParams, vocab_size: int, max_model_len: int) -> None:
    """
    Raises:
        ValueError: the prompt is empty, holds a token outside the vocabulary, or is too long together with its output.
    """
    if not token_ids:
        raise ValueError("prompt must hold at least one token; got none")
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise ValueError(
            f"prompt must hold tokens of 0..{vocab_size - 1}; got values from {min(token_ids)} to {max(token_ids)}"
        )
    unknown = [token for token, _ in params.biases if token >= vocab_size]
    if unknown:
        raise ValueError(f"logit_bias must name tokens of 0..{vocab_size - 1}; got {unknown[0]}")
    if len(token_ids) + params.max_tokens > max_model_len:
        raise ValueError(
            f"prompt and max_tokens must together be at most max_model_len = {max_model_len} tokens; "
            f"got {len(token_ids)} and {params.max_tokens}"
        )
