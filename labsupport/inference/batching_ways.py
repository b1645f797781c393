"""Static and continuous batching on the real engine, so that their steps can be counted and their answers compared."""

from __future__ import annotations

from collections.abc import Sequence

from labsupport.inference.engine import LLMEngine
from labsupport.inference.workload import greedy


def serve_statically(engine: LLMEngine, prompts: Sequence[list[int]], wanted: Sequence[int]) -> list[list[int]]:
    """One batch of ``engine.scheduler.max_num_seqs`` requests at a time, every member as long as the longest wants.

    Returns the ``wanted`` tokens of each request; what was computed beyond them is thrown away.
    """
    answers: list[list[int]] = []
    slots = engine.scheduler.max_num_seqs
    for start in range(0, len(prompts), slots):
        counts = wanted[start : start + slots]
        outputs = engine.generate(prompts[start : start + slots], greedy(max(counts)))
        answers += [output.token_ids[:count] for output, count in zip(outputs, counts, strict=True)]
    return answers


def serve_continuously(engine: LLMEngine, prompts: Sequence[list[int]], wanted: Sequence[int]) -> list[list[int]]:
    """All requests at once: the engine's scheduler decides before each step who is in it."""
    outputs = engine.generate(prompts, [greedy(count) for count in wanted])
    return [output.token_ids for output in outputs]
