"""A stand-in for `LLMEngine` whose answers are known and whose steps wait until they are allowed.

The interface is the engine's: `add_request`, `step`, `abort`, `has_unfinished`, `generate`, `stats`, `tokenizer`,
`max_model_len`. There is no model: the continuation of each prompt is given, each of its bytes is a token, and the
tokenizer's end-of-text token ends it.

A step of a real engine takes long. Here it takes as long as the check wants: after `hold()` each step waits for an
`allow()`, so whether a server is blocked meanwhile does not depend on timing. What a server does wrong is recorded:
`overlaps` are calls that came while a step ran, `threads` those in which it was stepped.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from labsupport.inference.detokenize import TextStream
from labsupport.inference.request import FinishReason, RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.lm.tokenizer import ByteTokenizer


@dataclass
class _Request:
    request_id: Hashable
    prompt: str
    params: SamplingParams
    script: list[int]
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    times: RequestTimes = field(default_factory=RequestTimes)

    def output(self) -> RequestOutput:
        return RequestOutput(self.request_id, list(self.prompt.encode()), self.stream.text, self.token_ids.copy(),
                             self.finish_reason, None, 0, self.times)  # fmt: skip


class StandInEngine:
    """``answers`` maps a prompt to its continuation. Other prompts are continued with question marks."""

    def __init__(self, answers: Mapping[str, str], max_num_seqs: int = 8, max_model_len: int = 1024) -> None:
        self.tokenizer, self.max_num_seqs, self.max_model_len = ByteTokenizer(), max_num_seqs, max_model_len
        self.requests: dict[Hashable, _Request] = {}  # unfinished, in order of arrival
        self.seen: list[_Request] = []  # all that were ever added
        self.largest_batch = self.num_steps = 0
        self.overlaps: list[str] = []
        self.threads: set[int] = set()  # identifiers of the threads that called step()
        self._answers = dict(answers)
        self._turn = threading.Condition()
        self._allowed: int | None = None  # None: any number
        self._stepping: int | None = None  # identifier of the thread that is inside step()
        self._failure = ""
        self._closed = False
        self._finished: Counter[str] = Counter()
        self._num_prompt_tokens = self._num_generated = self._num_ids = 0

    # The engine's interface

    @property
    def has_unfinished(self) -> bool:
        self._end_if_closed()
        return bool(self.requests)

    def add_request(
        self, prompt: str | Sequence[int], sampling_params: SamplingParams | None = None,
        request_id: Hashable | None = None,
    ) -> Hashable:  # fmt: skip
        self._enter("add_request")
        params = SamplingParams() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params must be SamplingParams; got {type(params).__name__}")
        if not isinstance(prompt, str):
            prompt = self._decode(prompt)
        if not prompt:
            raise ValueError("prompt must hold at least one token; got none")
        length = len(prompt.encode())
        if length + params.max_tokens > self.max_model_len:
            raise ValueError(
                f"prompt and max_tokens must together be at most max_model_len = {self.max_model_len} tokens; "
                f"got {length} and {params.max_tokens}"
            )
        if request_id is None:
            request_id, self._num_ids = str(self._num_ids), self._num_ids + 1
        if request_id in self.requests:
            raise ValueError(f"request_id must be new; {request_id!r} is in use")
        script = [*self._answers.get(prompt, "?" * 1000).encode(), self.tokenizer.eos_token_id]
        stream = TextStream(self.tokenizer, params.stop)  # type: ignore[arg-type]
        request = _Request(request_id, prompt, params, script, stream)
        with self._turn:
            self.requests[request_id] = request
            self.seen.append(request)
        return request_id

    def step(self) -> list[RequestOutput]:
        self._enter("step")
        self.threads.add(threading.get_ident())
        with self._turn:
            if not self.requests:
                return []
            self._stepping = threading.get_ident()
            try:
                self._turn.wait_for(lambda: self._allowed != 0 or self._closed)
                self._end_if_closed()
                if self._allowed:
                    self._allowed -= 1
                if self._failure:
                    self.requests.clear()
                    raise RuntimeError(self._failure)
                return self._tokens()
            finally:
                self._stepping = None

    def abort(self, request_id: Hashable) -> RequestOutput | None:
        if request_id not in self.requests:
            return None
        self._enter("abort")
        return self._finish(request_id, "abort")

    def abort_all(self) -> None:
        for request_id in list(self.requests):
            self.abort(request_id)

    def generate(
        self, prompts: Sequence[str], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(prompts)
        else:
            params = list(sampling_params)
        results: dict[Hashable, RequestOutput | None] = {}
        for prompt, each in zip(prompts, params, strict=True):
            results[self.add_request(prompt, each)] = None
        while any(output is None for output in results.values()):
            for output in self.step():
                if output.finished and output.request_id in results:
                    results[output.request_id] = output
        return [output for output in results.values() if output is not None]

    def stats(self) -> EngineStats:
        self._end_if_closed()
        running = min(len(self.requests), self.max_num_seqs)
        return EngineStats(
            running, len(self.requests) - running, running / self.max_num_seqs, 0, 0, 0, self._num_prompt_tokens,
            self._num_generated, self.num_steps, dict(self._finished),
        )  # fmt: skip

    # For the check

    @property
    def held(self) -> bool:
        """Whether a step has begun and waits to be allowed."""
        return self._stepping is not None and self._allowed == 0

    def hold(self) -> None:
        """From now on a step waits until it is allowed."""
        with self._turn:
            self._allowed = 0

    def allow(self, steps: int = 1) -> None:
        with self._turn:
            self._allowed = (self._allowed or 0) + steps
            self._turn.notify_all()

    def open(self) -> None:
        """From now on no step waits."""
        with self._turn:
            self._allowed = None
            self._turn.notify_all()

    def fail(self, message: str) -> None:
        """From now on every step raises and drops all requests, as when a GPU is lost."""
        with self._turn:
            self._failure = message

    def close(self) -> None:
        """The check is over: any thread that still calls the engine ends quietly."""
        _let_threads_exit()
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    def knows(self, prompt: str) -> bool:
        return any(request.prompt == prompt for request in self.seen)

    def holds(self, prompt: str) -> bool:
        return any(request.prompt == prompt for request in list(self.requests.values()))

    # Helpers

    def _tokens(self) -> list[RequestOutput]:
        batch = list(self.requests.values())[: self.max_num_seqs]
        self.num_steps += 1
        self.largest_batch = max(self.largest_batch, len(batch))
        outputs = []
        for request in batch:
            if not request.token_ids:
                self._num_prompt_tokens += len(request.prompt.encode())
            token = request.script[len(request.token_ids)]
            request.token_ids.append(token)
            self._num_generated += 1
            if request.stream.push(token) or token == self.tokenizer.eos_token_id:
                outputs.append(self._finish(request.request_id, "stop"))
            elif len(request.token_ids) >= request.params.max_tokens:
                outputs.append(self._finish(request.request_id, "length"))
            else:
                outputs.append(request.output())
        return outputs

    def _finish(self, request_id: Hashable, reason: FinishReason) -> RequestOutput:
        request = self.requests.pop(request_id)
        request.stream.end()
        request.finish_reason = reason
        self._finished[reason] += 1
        return request.output()

    def _decode(self, prompt: Sequence[int]) -> str:
        try:
            return bytes(prompt).decode()
        except (TypeError, ValueError):
            raise ValueError(f"prompt must be a string or token ids; got {prompt!r:.60}") from None

    def _enter(self, function: str) -> None:
        self._end_if_closed()
        if self._stepping not in (None, threading.get_ident()):
            self.overlaps.append(function)

    def _end_if_closed(self) -> None:
        if self._closed:
            raise SystemExit


def _let_threads_exit() -> None:
    """Let `SystemExit` end a thread without a message, also where another hook is set, as pytest does."""
    hook = threading.excepthook
    if not getattr(hook, "lets_threads_exit", False):

        def quiet(args: threading.ExceptHookArgs) -> None:
            if args.exc_type is not SystemExit:
                hook(args)

        quiet.lets_threads_exit = True  # type: ignore[attr-defined]
        threading.excepthook = quiet
