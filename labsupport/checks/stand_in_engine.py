"""A stand-in for `LLMEngine` in the process of the student's app: it passes each call on, and returns what comes back.

The interface is the engine's: `add_request`, `step`, `abort`, `has_unfinished`, `generate`, `stats`, `tokenizer`,
`max_model_len`. The engine itself, which knows the answers and decides how long a step takes, is a `RecordedEngine` on
the other side of a channel; nothing here is believed there.
"""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Hashable, Sequence
from queue import SimpleQueue
from typing import Any

from labsupport.checks.channel import Channel, Closed, Message
from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.lm.tokenizer import ByteTokenizer


class _RequestId(str):
    """A string that a weak reference can point to: whoever keeps the id of a request that is over is noticed."""


class StandInEngine:
    """The engine at the other end of ``channel``, whose messages to it are handed to `take`."""

    def __init__(self, channel: Channel, max_num_seqs: int = 8, max_model_len: int = 1024) -> None:
        self.tokenizer, self.max_num_seqs, self.max_model_len = ByteTokenizer(), max_num_seqs, max_model_len
        self.server_thread: int | None = None  # identifier of the thread that runs the app's event loop
        self._channel = channel
        self._numbers = itertools.count()
        self._waiting: dict[int, SimpleQueue[Message | None]] = {}
        self._ids: dict[str, Hashable] = {}  # of requests that are not over: their names on the channel -> their ids
        self._own: dict[str, Hashable] = {}  # ids that the app has chosen
        self._over: dict[str, list[weakref.ref[Any]]] = {}  # what was handed out about requests that are over
        self._unfinished = self._closed = False

    # The engine's interface

    @property
    def has_unfinished(self) -> bool:
        self._end_if_closed()
        return self._unfinished

    def add_request(
        self, prompt: str | Sequence[int], sampling_params: SamplingParams | None = None,
        request_id: Hashable | None = None,
    ) -> Hashable:  # fmt: skip
        self._end_if_closed()
        params = SamplingParams() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params must be SamplingParams; got {type(params).__name__}")
        if not isinstance(prompt, str):
            prompt = self._decode(prompt)
        name = None if request_id is None else f"own {request_id!r}"
        if name is not None:
            self._own[name] = request_id
        given = {"max_tokens": params.max_tokens, "temperature": params.temperature, "stop": list(params.stop)}
        name = self._ask("add_request", prompt=prompt, params=given, name=name)
        return self._id(name)

    def step(self) -> list[RequestOutput]:
        return [self._output(each) for each in self._ask("step")]

    def abort(self, request_id: Hashable) -> RequestOutput | None:
        self._end_if_closed()
        names = [name for name, each in list(self._ids.items()) if each == request_id]
        found = self._ask("abort", name=names[0]) if names else None
        return None if found is None else self._output(found)

    def abort_all(self) -> None:
        for request_id in list(self._ids.values()):
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
        return EngineStats(**self._ask("stats"))

    # For the host

    def take(self, reply: Message) -> None:
        """The answer to a call."""
        self._unfinished = reply["unfinished"]
        self._waiting.pop(reply["number"]).put(reply)

    def close(self) -> None:
        """The check is over: any thread that still calls the engine ends quietly."""
        _let_threads_exit()
        self._closed = True
        for waiting in list(self._waiting.values()):
            waiting.put(None)

    def kept(self) -> int:
        """Requests that are over, and of which something that was handed out is still held by somebody."""
        for _ in range(3):
            gc.collect()
        return sum(any(each() is not None for each in references) for references in list(self._over.values()))

    # Helpers

    def _ask(self, function: str, **arguments: Any) -> Any:
        self._end_if_closed()
        number, waiting = next(self._numbers), SimpleQueue[Message | None]()
        self._waiting[number] = waiting
        on_loop = threading.get_ident() == self.server_thread
        try:
            self._channel.send({"call": number, "function": function, "arguments": arguments, "on_loop": on_loop})
        except Closed:
            self.close()
        reply = waiting.get()
        if reply is None:
            raise SystemExit
        if "value_error" in reply:
            raise ValueError(reply["value_error"])
        if "runtime_error" in reply:
            self._ids.clear()
            raise RuntimeError(reply["runtime_error"])
        return reply["result"]

    def _output(self, found: Message) -> RequestOutput:
        name, reason = found["name"], found["finish_reason"]
        request_id = self._id(name)
        output = RequestOutput(request_id, list(found["prompt"].encode()), found["text"], found["token_ids"], reason,
                               None, 0, RequestTimes())  # fmt: skip
        if reason is not None:
            self._ids.pop(name, None)
            handed_out = [output, request_id] if isinstance(request_id, _RequestId) else [output]
            self._over[name] = [weakref.ref(each) for each in handed_out]
        return output

    def _id(self, name: str) -> Hashable:
        return self._ids.setdefault(name, self._own[name] if name in self._own else _RequestId(name))

    def _decode(self, prompt: Sequence[int]) -> str:
        try:
            return bytes(prompt).decode()
        except (TypeError, ValueError):
            raise ValueError(f"prompt must be a string or token ids; got {prompt!r:.60}") from None

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
