"""The engine behind a student's app, on the trusted side: its answers are known, its steps wait until they are allowed.

There is no model: the continuation of each prompt is given, each of its bytes is a token, and the tokenizer's
end-of-text token ends it. A step of a real engine takes long. Here it takes as long as the check wants: after `hold()`
each step waits for an `allow()`, so whether a server is blocked meanwhile does not depend on timing.

All calls come over a channel, one after the other, and are answered in the thread that reads it: nothing here needs a
lock, and what a server does wrong is a fact. `overlaps` are calls that came while a step waited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from labsupport.inference.detokenize import TextStream
from labsupport.inference.request import FinishReason
from labsupport.lm.tokenizer import ByteTokenizer

Reply = Callable[..., None]  # called with number=..., and result=..., value_error=... or runtime_error=...


@dataclass
class Recorded:
    """One request: what was asked of the engine, and what it has made so far."""

    name: str
    prompt: str
    max_tokens: Any
    temperature: Any
    script: list[int]
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def output(self) -> dict[str, Any]:
        return {"name": self.name, "prompt": self.prompt, "text": self.stream.text, "token_ids": self.token_ids.copy(),
                "finish_reason": self.finish_reason}  # fmt: skip


class RecordedEngine:
    """``answers`` maps a prompt to its continuation. Other prompts are continued with question marks."""

    def __init__(
        self, answers: Mapping[str, str], reply: Reply, max_num_seqs: int = 8, max_model_len: int = 1024,
        first_tokens: int = 1,
    ) -> None:  # fmt: skip
        self.tokenizer, self.max_num_seqs, self.max_model_len = ByteTokenizer(), max_num_seqs, max_model_len
        self.requests: dict[str, Recorded] = {}  # unfinished, in order of arrival
        self.seen: list[Recorded] = []  # all that were ever added
        self.largest_batch = self.num_steps = 0
        self.overlaps: list[str] = []
        self.on_loop = False  # whether the app says that it called step() on its event loop
        self._answers, self._first_tokens = dict(answers), first_tokens
        self._reply = reply
        self._allowed: int | None = None  # None: any number
        self._pending: list[int] = []  # numbers of the calls of step() that wait
        self._failure = ""
        self._finished: Counter[str] = Counter()
        self._num_prompt_tokens = self._num_generated = 0

    def call(self, number: int, function: str, arguments: Mapping[str, Any], on_loop: bool) -> None:
        """What the app asks for. Raises whatever it likes if the arguments are none that a `StandInEngine` sends."""
        harmless = function == "stats" or (function == "abort" and arguments["name"] not in self.requests)
        if self._pending and not harmless:
            self.overlaps.append(function)
        if function == "step":
            self.on_loop |= on_loop
            self._pending.append(number)
            self._go_on()
        elif function == "add_request":
            try:
                self._reply(number, result=self._add(**arguments))
            except ValueError as error:
                self._reply(number, value_error=str(error))
        elif function == "abort":
            found = arguments["name"] in self.requests
            self._reply(number, result=self._finish(arguments["name"], "abort") if found else None)
        elif function == "stats":
            self._reply(number, result=self._stats())
        else:
            raise ValueError(f"an engine has no function {function!r}")

    @property
    def held(self) -> bool:
        """Whether a step has begun and waits to be allowed."""
        return bool(self._pending)

    def hold(self) -> None:
        """From now on a step waits until it is allowed."""
        self._allowed = 0

    def allow(self, steps: int = 1) -> None:
        self._allowed = (self._allowed or 0) + steps
        self._go_on()

    def open(self) -> None:
        """From now on no step waits."""
        self._allowed = None
        self._go_on()

    def fail(self, message: str) -> None:
        """From now on every step raises and drops all requests, as when a GPU is lost."""
        self._failure = message

    def request(self, prompt: str) -> Recorded | None:
        """The newest request with this prompt."""
        return next((each for each in reversed(self.seen) if each.prompt == prompt), None)

    def holds(self, prompt: str) -> bool:
        return any(request.prompt == prompt for request in self.requests.values())

    def _go_on(self) -> None:
        while self._pending and (self._allowed != 0 or not self.requests):
            number = self._pending.pop(0)
            if not self.requests:
                self._reply(number, result=[])
                continue
            if self._allowed:
                self._allowed -= 1
            if self._failure:
                self.requests.clear()
                self._reply(number, runtime_error=self._failure)
            else:
                self._reply(number, result=self._tokens())

    def _add(self, prompt: str, params: Mapping[str, Any], name: str | None) -> str:
        if not prompt:
            raise ValueError("prompt must hold at least one token; got none")
        length, max_tokens = len(prompt.encode()), params["max_tokens"]
        if length + max_tokens > self.max_model_len:
            raise ValueError(
                f"prompt and max_tokens must together be at most max_model_len = {self.max_model_len} tokens; "
                f"got {length} and {max_tokens}"
            )
        name = str(len(self.seen)) if name is None else str(name)
        if name in self.requests:
            raise ValueError(f"request_id must be new; {name.removeprefix('own ')} is in use")
        script = [*self._answers.get(prompt, "?" * 1000).encode(), self.tokenizer.eos_token_id]
        stream = TextStream(self.tokenizer, [str(stop) for stop in params["stop"]])  # type: ignore[arg-type]
        request = Recorded(name, prompt, max_tokens, params["temperature"], script, stream)
        self.requests[name] = request
        self.seen.append(request)
        return name

    def _tokens(self) -> list[dict[str, Any]]:
        batch = list(self.requests.values())[: self.max_num_seqs]
        self.num_steps += 1
        self.largest_batch = max(self.largest_batch, len(batch))
        outputs = []
        for request in batch:
            if not request.token_ids:
                self._num_prompt_tokens += len(request.prompt.encode())
            more = 1 if request.token_ids else self._first_tokens  # several at once, as when an engine speculates
            for token in request.script[len(request.token_ids) :][: more - 1]:
                request.token_ids.append(token)
                request.stream.push(token)
            token = request.script[len(request.token_ids)]
            request.token_ids.append(token)
            self._num_generated += more
            if request.stream.push(token) or token == self.tokenizer.eos_token_id:
                outputs.append(self._finish(request.name, "stop"))
            elif len(request.token_ids) >= request.max_tokens:
                outputs.append(self._finish(request.name, "length"))
            else:
                outputs.append(request.output())
        return outputs

    def _finish(self, name: str, reason: FinishReason) -> dict[str, Any]:
        request = self.requests.pop(name)
        request.stream.end()
        request.finish_reason = reason
        self._finished[reason] += 1
        return request.output()

    def _stats(self) -> dict[str, Any]:
        running = min(len(self.requests), self.max_num_seqs)
        return {
            "num_requests_running": running, "num_requests_waiting": len(self.requests) - running,
            "kv_cache_usage_perc": running / self.max_num_seqs, "num_preemptions": 0, "prefix_cache_queries": 0,
            "prefix_cache_hits": 0, "prompt_tokens": self._num_prompt_tokens, "generation_tokens": self._num_generated,
            "num_steps": self.num_steps, "finished": dict(self._finished),
        }  # fmt: skip
