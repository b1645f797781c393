"""The same server in front of vLLM, for models and loads that outgrow a teaching engine.

    labsupport serve --engine vllm --model meta-llama/Llama-3.1-8B-Instruct

vLLM's `AsyncLLM` has the shape of this course's `Backend`: a stream of cumulative outputs a request, which aborts the
request when it is closed. What is left to do is to translate parameters and outputs, to bound the queue, which vLLM
leaves open, and to keep count. Written for vLLM's V1 engine; it was tested against a stand-in with its interface.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Any

from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.stats import EngineStats
from labsupport.lm.tokenizer import Tokenizer
from labsupport.serving.backend import GenerationFailed, Overloaded, Unavailable
from labsupport.serving.protocol import Message

_ABORT_SECONDS = 5.0


class VLLMBackend:
    """A `Backend` over an `AsyncLLM`.

    Args:
        engine: vLLM's.
        load: what the engine's steps report to (`_Load`); None: running and waiting are told from here.
        max_num_seqs, max_waiting: together, how many requests are accepted at a time.
    """

    def __init__(
        self,
        engine: Any,
        model_name: str,
        max_num_seqs: int,
        max_waiting: int = 64,
        load: _Load | None = None,
    ) -> None:
        self.engine, self.model_name = engine, model_name
        self.max_model_len: int = engine.model_config.max_model_len
        self.max_in_flight: int | None = max_num_seqs + max_waiting
        self.tokenizer: Tokenizer = _Tokenizer(engine.get_tokenizer())
        self.template = self._template if getattr(engine.get_tokenizer(), "chat_template", None) else None
        self._load = load or _Load()
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
        """Load a model by vLLM. ``options`` are fields of its `AsyncEngineArgs`.

        Raises:
            ValueError: vLLM is not installed.
        """
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ValueError(
                f"vLLM cannot be imported ({error}): install it as https://docs.vllm.ai says, or serve with the "
                "course's own engine"
            ) from error
        load = _Load()
        arguments = AsyncEngineArgs(model=model, max_num_seqs=max_num_seqs, max_model_len=max_model_len, **options)
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[stat_logger(load)])
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
            raise _translated(error) from error
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
            logprobs = [{token: float(value.logprob) for token, value in each.items()} for each in only.logprobs]
        return RequestOutput(
            request_id, prompt, only.text, list(only.token_ids), only.finish_reason if output.finished else None,
            logprobs, output.num_cached_tokens or 0, times,
        )  # fmt: skip

    def _template(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """By the template that the model was published with; its end-of-turn token is vLLM's business."""
        turns = [{"role": each.role, "content": each.text} for each in messages]
        tokens = self.engine.get_tokenizer().apply_chat_template(
            turns, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return list(tokens), []


def vllm_params(params: SamplingParams, intermediate: bool) -> Any:
    """vLLM's `SamplingParams` for ours.

    Raises:
        ValueError: vLLM has no such thing.
    """
    import vllm
    from vllm.sampling_params import RequestOutputKind

    if params.max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1 for vLLM; got {params.max_tokens}")
    return vllm.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=None if params.seed is None else params.seed % 2**63,
        stop=list(params.stop),
        stop_token_ids=list(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
        output_kind=RequestOutputKind.CUMULATIVE if intermediate else RequestOutputKind.FINAL_ONLY,
    )


class _Load:
    """What vLLM tells of its steps."""

    running: int | None = None
    waiting: int | None = None
    kv_cache_usage = 0.0
    preemptions = prefix_queries = prefix_hits = steps = 0

    def record(self, scheduler: Any, iteration: Any) -> None:
        if scheduler is not None:
            self.running, self.waiting = scheduler.num_running_reqs, scheduler.num_waiting_reqs
            self.kv_cache_usage = scheduler.kv_cache_usage
            self.prefix_queries += scheduler.prefix_cache_stats.queries
            self.prefix_hits += scheduler.prefix_cache_stats.hits
        if iteration is not None:
            self.steps += 1
            self.preemptions += iteration.num_preempted_reqs


def stat_logger(load: _Load) -> Any:
    """A factory for vLLM, of a logger that reports to ``load``."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Logger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            load.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    return Logger


class _Tokenizer:
    """Hugging Face's, in the course's interface. Prompts begin as the model wants them to."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.eos_token_id: int = -1 if inner.eos_token_id is None else inner.eos_token_id
        self.vocab_size: int = len(inner)

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text))

    def decode(self, token_ids: Iterable[int]) -> str:
        return self.inner.decode(list(token_ids), skip_special_tokens=True)


def _translated(error: Exception) -> Exception:
    """vLLM's classes by name: they have moved between its modules more than once."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"EngineDeadError", "AsyncEngineDeadError"}:
        return Unavailable("vLLM's engine is dead")
    if names & {"ValueError", "VLLMClientError", "VLLMValidationError"}:
        return ValueError(str(error))
    return GenerationFailed(f"vLLM failed: {type(error).__name__}")
