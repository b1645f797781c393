"""The same server in front of vLLM, for models and loads that outgrow a teaching engine.

    labsupport serve --engine vllm --model meta-llama/Llama-3.1-8B-Instruct

vLLM's `AsyncLLM` has the shape of this course's `Backend`: one stream of cumulative outputs per request, which aborts
the request when it is closed. What remains is to bound the queue, which vLLM leaves unbounded, to keep count, and to
translate (vllm_translation.py). Written for vLLM's V1 engine and tested against a stand-in with its interface.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.lm.tokenizer import Tokenizer
from labsupport.serving.backend import GenerationFailed, Overloaded, Unavailable
from labsupport.serving.protocol import Message
from labsupport.serving.vllm_translation import Load, VLLMTokenizer, stat_logger, translated, vllm_params

_ABORT_SECONDS = 5.0


class VLLMBackend:
    """A `Backend` over an `AsyncLLM`.

    Args:
        engine: vLLM's.
        load: where the engine's steps report to; None: running and waiting requests are counted here.
        max_num_seqs, max_waiting: together, how many requests are accepted at a time.
    """

    def __init__(
        self,
        engine: Any,
        model_name: str,
        max_num_seqs: int,
        max_waiting: int = 64,
        load: Load | None = None,
    ) -> None:
        self.engine, self.model_name = engine, model_name
        self.max_model_len: int = engine.model_config.max_model_len
        self.max_in_flight: int | None = max_num_seqs + max_waiting
        self.tokenizer: Tokenizer = VLLMTokenizer(engine.get_tokenizer())
        self.template = self._template if getattr(engine.get_tokenizer(), "chat_template", None) else None
        self._load = load or Load()
        self._max_num_seqs = max_num_seqs
        self._running: set[str] = set()
        self._idle = asyncio.Event()
        self._draining = self._closed = False
        self._prompt_tokens = self._generation_tokens = 0
        self._finished: Counter[str] = Counter()

    @classmethod
    def of_model(
        cls, model: str, max_num_seqs: int, max_waiting: int = 64, max_model_len: int | None = None, **options: Any
    ) -> VLLMBackend:
        """Load a model with vLLM. ``options`` are fields of its `AsyncEngineArgs`.

        Raises:
            ValueError: vLLM is not installed, or does not know an option, or cannot load the model with them.
        """
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ValueError(
                f"vLLM cannot be imported ({error}): install it as https://docs.vllm.ai says, or serve with the "
                "course's own engine"
            ) from error
        load = Load()
        options = {"max_num_seqs": max_num_seqs, "max_model_len": max_model_len, **options}
        try:
            arguments = AsyncEngineArgs(model=model, **options)
            engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[stat_logger(load)])
        except (TypeError, RuntimeError, OSError) as error:
            raise ValueError(f"vLLM cannot serve {model} with {options}: {error}") from error
        return cls(engine, model, max_num_seqs, max_waiting, load)

    async def start(self) -> None:
        if self._closed:
            raise Unavailable("vLLM's engine was shut down, and cannot be started again")
        self._draining = False

    async def stream(
        self, request_id: str, prompt: str | list[int], params: SamplingParams, intermediate: bool = True
    ) -> AsyncIterator[RequestOutput]:
        from vllm import TokensPrompt

        if self._draining or self._closed or self.engine.errored:
            raise Unavailable("the server is shutting down, or vLLM's engine is dead")
        if self.max_in_flight is not None and len(self._running) >= self.max_in_flight:
            raise Overloaded(f"{len(self._running)} requests are running or waiting, which is the limit")
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if not tokens:
            raise ValueError("prompt must hold at least one token; got none")
        theirs = vllm_params(params, intermediate)
        times = RequestTimes()
        self._running.add(request_id)
        outputs = self.engine.generate(TokensPrompt(prompt_token_ids=tokens), theirs, request_id)
        try:
            if intermediate:
                yield RequestOutput(request_id, tokens, "", [], None, None if params.logprobs is None else [], 0, times)
            async for output in outputs:
                ours = self._output(request_id, tokens, output, times)
                if ours.finished:
                    self._finished[str(ours.finish_reason)] += 1
                yield ours
        except (GenerationFailed, Unavailable):
            raise
        except Exception as error:
            raise translated(error) from error
        finally:
            await outputs.aclose()  # vLLM aborts what is not finished
            self._running.discard(request_id)
            if not self._running:
                self._idle.set()

    def alive(self) -> bool:
        return not self._closed and not self.engine.errored

    def ready(self) -> bool:
        return self.alive() and not self._draining

    def stats(self) -> EngineStats:
        load = self._load
        running = min(len(self._running), self._max_num_seqs) if load.running is None else load.running
        waiting = len(self._running) - running if load.waiting is None else load.waiting
        return EngineStats(
            running, max(0, waiting), load.kv_cache_usage, load.preemptions, load.prefix_queries, load.prefix_hits,
            self._prompt_tokens, self._generation_tokens, load.steps, dict(self._finished),
        )  # fmt: skip

    async def shutdown(self, drain_seconds: float) -> None:
        if self._closed:
            return
        self._draining = True
        self._idle.clear()
        if self._running:
            try:
                await asyncio.wait_for(self._idle.wait(), drain_seconds)
            except TimeoutError:
                await self.engine.abort(list(self._running))  # their streams end with the reason "abort"
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._idle.wait(), _ABORT_SECONDS)
        self._closed = True
        await asyncio.to_thread(self.engine.shutdown)

    def _output(self, request_id: str, prompt: list[int], output: Any, times: RequestTimes) -> RequestOutput:
        only = output.outputs[0]
        if output.finished and only.finish_reason not in ("stop", "length", "abort"):
            raise GenerationFailed(f"vLLM ended a request by {only.finish_reason!r}")
        now = time.monotonic()
        if only.token_ids and times.first_token is None:
            times.first_token = now
            self._prompt_tokens += len(prompt)
        if output.finished:
            times.finished = now
            self._generation_tokens += len(only.token_ids)
        logprobs = None
        if only.logprobs is not None:
            logprobs = [_values(each) for each in only.logprobs]
        scored = getattr(output, "prompt_logprobs", None)
        return RequestOutput(
            request_id, prompt, only.text, list(only.token_ids), only.finish_reason if output.finished else None,
            logprobs, output.num_cached_tokens or 0, times,
            None if scored is None else [each and _values(each) for each in scored],
        )  # fmt: skip

    def _template(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """With the template that the model was published with; vLLM knows its end-of-turn token."""
        turns = [{"role": each.role, "content": each.text} for each in messages]
        tokens = self.engine.get_tokenizer().apply_chat_template(
            turns, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return list(tokens), []


def _values(logprobs: Mapping[int, Any]) -> dict[int, float]:
    return {token: float(value.logprob) for token, value in logprobs.items()}
