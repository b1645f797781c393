"""Workloads for the real engine: pieces of held-out text, answers of exact length, and how fast they are served."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from labsupport.inference.engine import LLMEngine
from labsupport.inference.sampling import SamplingParams
from labsupport.lm import LanguageModel, corpus


def workload(
    lm: LanguageModel, count: int, prompt: tuple[int, int], output: tuple[int, int] = (1, 1), seed: int = 0
) -> tuple[list[list[int]], list[int]]:
    """``count`` prompts from the evaluation text, and how many new tokens each wants.

    prompt, output: (smallest, largest) number of tokens, drawn uniformly.
    """
    draw, text = random.Random(seed), lm.tokenizer.encode(corpus("evaluation"))
    prompts, wanted = [], []
    for _ in range(count):
        start, length = draw.randrange(len(text) // 2), draw.randint(*prompt)
        prompts.append(text[start : start + length])
        wanted.append(draw.randint(*output))
    return prompts, wanted


def greedy(count: int) -> SamplingParams:
    """Exactly ``count`` tokens, each the most likely one."""
    return SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)


def tokens_per_second(engine: LLMEngine, prompts: Sequence[list[int]], wanted: Sequence[int]) -> float:
    """New tokens per second of all requests together, their prompts included in the time; two requests warm up."""
    engine.generate(prompts[:2], greedy(4))
    start = time.perf_counter()
    outputs = engine.generate(prompts, [greedy(count) for count in wanted])
    return sum(len(output.token_ids) for output in outputs) / (time.perf_counter() - start)
