"""What requests in the middle of their answers notice of a long prompt, at several token budgets a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from labsupport.inference.engine import LLMEngine
from labsupport.inference.watch import watch_plans
from labsupport.inference.workload import greedy, workload
from labsupport.lm import LanguageModel

BEFORE = 20  # steps until the latecomer arrives


@dataclass(frozen=True)
class Latecomer:
    """One run. Times are in milliseconds.

    Attributes:
        longest_gap: of those that decode while the latecomer's prompt is read, between two of their tokens.
        first_token: of the latecomer, from its arrival.
        most_tokens: in one step while the prompt is read: what the budget bounds.
    """

    longest_gap: float
    first_token: float
    most_tokens: int
    num_steps: int
    tokens: dict[object, list[int]]


def serve_with_latecomer(lm: LanguageModel, budget: int, prompt_tokens: int = 1024, decoding: int = 6) -> Latecomer:
    """``decoding`` requests are answered; after 20 steps one with a prompt of ``prompt_tokens`` arrives."""
    engine = LLMEngine(lm, max_num_seqs=decoding + 2, max_num_batched_tokens=budget, enable_prefix_caching=False)
    prompts, _ = workload(lm, decoding, prompt=(16, 32), seed=1)
    (long_prompt,), _ = workload(lm, 1, prompt=(prompt_tokens, prompt_tokens), seed=2)
    for number, prompt in enumerate(prompts):
        engine.add_request(prompt, greedy(60), request_id=number)
    for _ in range(BEFORE):
        engine.step()
    plans = watch_plans(engine)
    arrived = time.perf_counter()
    engine.add_request(long_prompt, greedy(8), request_id="late")
    tokens: dict[object, list[int]] = {}
    gaps: list[float] = []
    first, most = 0.0, 0
    while engine.has_unfinished:
        start = time.perf_counter()
        outputs = engine.step()
        now = time.perf_counter()
        if "late" not in tokens:
            gaps.append(1e3 * (now - start))
        tokens |= {output.request_id: output.token_ids for output in outputs}
        if "late" in tokens and not first:
            first, most = 1e3 * (now - arrived), max(plan.num_tokens for plan in plans)
    return Latecomer(max(gaps), first, most, engine.stats().num_steps, tokens)


def compare_budgets(lm: LanguageModel, budgets: Sequence[int], repeats: int = 7) -> pd.DataFrame:
    """One row a budget; times are the median of ``repeats`` runs, which take turns, after one to warm up."""
    serve_with_latecomer(lm, budgets[0])
    runs: dict[int, list[Latecomer]] = {budget: [] for budget in budgets}
    for _ in range(repeats):
        for budget in budgets:
            runs[budget].append(serve_with_latecomer(lm, budget))
    rows = {}
    for budget, each in runs.items():
        rows[f"{budget:,} tokens a step"] = {
            "most tokens in a step": each[0].most_tokens,
            "longest gap, ms": statistics.median(run.longest_gap for run in each),
            "first token, ms": statistics.median(run.first_token for run in each),
            "steps": each[0].num_steps,
            "same tokens": all(run.tokens == runs[budgets[0]][0].tokens for run in each),
        }
    return pd.DataFrame(rows).T
