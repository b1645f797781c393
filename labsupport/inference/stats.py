"""The engine's counters, as a server reports them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """The engine's present state, and what it has done since it was made. Names are those of vLLM where it has one."""

    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage_perc: float  # 0 to 1: blocks in use
    num_preemptions: int
    prefix_cache_queries: int  # tokens looked for
    prefix_cache_hits: int  # tokens found
    prompt_tokens: int
    generation_tokens: int
    num_steps: int
    finished: dict[str, int]  # requests by finish_reason
