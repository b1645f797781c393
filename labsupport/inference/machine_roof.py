"""How much of what the machine allows the engine gets: steps of several kinds, measured and under the roofline."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pandas as pd

from labsupport.inference.engine import LLMEngine
from labsupport.inference.workload import greedy, workload
from labsupport.kvcache import Machine, forward_cost, measure_machine, next_token_cost, roofline, weight_bytes
from labsupport.kvcache.cost import Cost
from labsupport.lm import LanguageModel

FLOAT32: dict[str, Any] = {"bytes_per_weight": 4, "bytes_per_kv": 4}


def measure_roofline(lm: LanguageModel, length: int = 128) -> pd.DataFrame:
    """A row for each kind of step: decoding after ``length`` tokens, and reading a prompt.

    "share of the roof" is the least time that the machine allows, over the time measured. The last two columns are the
    machine, the same in all rows (`machine_of`).
    """
    machine = measure_machine(weight_bytes(lm.model.config, 4), device=lm.model.embed_tokens.weight.device)
    rows = {}
    for name, cost in step_costs(lm, length).items():
        number = int(name.split()[-1 if name.startswith("decode") else -2])
        seconds = median_step(lm, number, length) if name.startswith("decode") else median_prefill(lm, number)
        best = roofline(cost, machine)
        rows[name] = {
            "operations a byte": cost.intensity,
            "bound by": best.bound,
            "ms at best": 1e3 * best.seconds,
            "ms measured": 1e3 * seconds,
            "share of the roof": best.seconds / seconds,
            "GFLOP/s": cost.flops / seconds / 1e9,
            "memory, GB/s": machine.bytes_per_second / 1e9,
            "arithmetic, GFLOP/s": machine.flops_per_second / 1e9,
        }
    return pd.DataFrame(rows).T.infer_objects()


def machine_of(table: pd.DataFrame) -> Machine:
    """The machine on which `measure_roofline` measured the table."""
    row = table.iloc[0]
    return Machine(1e9 * row["memory, GB/s"], 1e9 * row["arithmetic, GFLOP/s"])


def step_costs(lm: LanguageModel, length: int = 128) -> dict[str, Cost]:
    """What the kinds of step cost in operations and bytes, everything in float32."""
    config = lm.model.config
    costs = {f"decode, batch {n}": next_token_cost(config, length, n, **FLOAT32) for n in (1, 4, 16)}
    return costs | {f"prefill, {n} tokens": forward_cost(config, n, **FLOAT32) for n in (64, 256)}


def median_step(lm: LanguageModel, batch: int, length: int, steps: int = 12) -> float:
    """Median seconds of a step in which ``batch`` sequences of about ``length`` tokens decode."""
    engine = LLMEngine(lm, max_num_seqs=batch, max_num_batched_tokens=512, enable_prefix_caching=False)
    prompts, _ = workload(lm, batch, prompt=(length, length), seed=8)
    for prompt in prompts:
        engine.add_request(prompt, greedy(steps + 8))
    made = 0
    while made < batch:  # until all prompts are read
        made = len(engine.step())
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def median_prefill(lm: LanguageModel, length: int, repeats: int = 5) -> float:
    """Median seconds until the first token after a prompt of ``length`` tokens, in one step."""
    engine = LLMEngine(lm, max_num_seqs=1, max_num_batched_tokens=length, enable_prefix_caching=False)
    prompts, _ = workload(lm, repeats + 1, prompt=(length, length), seed=9)
    times = []
    for prompt in prompts:
        start = time.perf_counter()
        engine.generate([prompt], greedy(1))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
