"""vLLM's terms for ours: sampling parameters, statistics, tokenizer, errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labsupport.inference.sampling import SamplingParams
from labsupport.serving.backend import GenerationFailed, Unavailable


def vllm_params(params: SamplingParams, intermediate: bool) -> Any:
    """vLLM's `SamplingParams` for ours.

    Raises:
        ValueError: vLLM has no equivalent.
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
        prompt_logprobs=params.prompt_logprobs,
        min_tokens=params.min_tokens,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias) if params.logit_bias else None,
        output_kind=RequestOutputKind.CUMULATIVE if intermediate else RequestOutputKind.FINAL_ONLY,
    )


class Load:
    """What vLLM reports of its steps."""

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


def stat_logger(load: Load) -> Any:
    """The class of a vLLM logger that reports to ``load``."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Logger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            load.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    return Logger


class VLLMTokenizer:
    """Hugging Face's, with the course's interface. `encode` adds the model's own start tokens."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.eos_token_id: int = -1 if inner.eos_token_id is None else inner.eos_token_id
        self.vocab_size: int = len(inner)

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text))

    def decode(self, token_ids: Iterable[int]) -> str:
        return self.inner.decode(list(token_ids), skip_special_tokens=True)


def translated(error: Exception) -> Exception:
    """Our exception for one of vLLM's. By class name: vLLM has moved them between modules more than once."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"EngineDeadError", "AsyncEngineDeadError"}:
        return Unavailable("vLLM's engine is dead")
    if names & {"ValueError", "VLLMClientError", "VLLMValidationError"}:
        return ValueError(str(error))
    return GenerationFailed(f"vLLM failed: {type(error).__name__}")
