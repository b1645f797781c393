"""The capstone: each compression on one model, behind one server, measured against the untouched model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import nn

from labsupport.inference import LLMEngine
from labsupport.kvcache import KVCache, QuantizedKVCache, WithFreshCache
from labsupport.lm import LanguageModel, calibration_windows, evaluation_tokens, perplexity
from labsupport.quantization import quantize_model
from labsupport.serving.api import create_app
from labsupport.serving.load.report import Report
from labsupport.serving.load.tester import run_load
from labsupport.serving.load.workload import Planned, plan_requests
from labsupport.serving.local import serving
from labsupport.serving.monitor import Percentiles

Stage = tuple[Any, int | None]  # the model, and the bits of its cache (None: float32)
Requests = tuple[tuple[int, int, int, int], tuple[int, int, int, int]]  # each: count, fewest, most new tokens, seed

UNTOUCHED = "untouched, float32"


def stages(lm: LanguageModel, pruned: nn.Module | None) -> dict[str, Stage]:
    """The rows of the table, in its order; the last two need a recovered ``pruned`` model, and are left out without.

    All quantized models keep an 8-bit output head.
    """
    windows = calibration_windows(lm)
    w8a8: dict[str, Any] = {"method": "int8_dynamic", "smooth": True, "head_bits": 8, "progress": False}
    found: dict[str, Stage] = {
        UNTOUCHED: (lm.model, None),
        "W8A8, smoothed": (quantize_model(lm.model, windows, **w8a8), None),
        "4-bit AWQ": (quantize_model(lm.model, windows, "awq", 4, head_bits=8, progress=False), None),
        "8-bit KV cache": (lm.model, 8),
    }
    if pruned is not None:
        found["pruned, recovered"] = (pruned, None)
        found["pruned, W8A8, 8-bit KV"] = (quantize_model(pruned, windows, **w8a8), 8)
    return found


async def capstone(lm: LanguageModel, pruned: nn.Module | None, requests: Requests, rounds: int = 2) -> pd.DataFrame:
    """One row a stage: bytes, perplexity, and speed over HTTP, with ratios to the untouched model.

    requests: for one user at a time, and for eight at once. Speeds are the better of ``rounds``, in which the stages
    take turns, so that a slow moment of the machine does not fall on one of them alone.
    """
    compared = stages(lm, pruned)
    one, eight = (plan_requests(n, None, "uniform:64:256", f"uniform:{low}:{high}", s) for n, low, high, s in requests)
    rows = {name: size_and_quality(lm, *stage) for name, stage in compared.items()}
    for _ in range(rounds):
        for name, (model, bits) in compared.items():
            speed = await serve_and_measure(dataclasses.replace(lm, model=model), bits, one, eight)
            for column, value in speed.items():
                better = max if column.startswith("tokens/s") else min
                rows[name][column] = better(value, rows[name].get(column, value))
    return pd.DataFrame(rows).T.pipe(with_ratios)


def size_and_quality(lm: LanguageModel, model: Any, kv_cache_bits: int | None) -> dict[str, float]:
    """ "weights, MB", "memory, MB" (weights, and the cache of eight conversations of 512 tokens), and "perplexity"
    with that cache."""
    report: Any = getattr(model, "quantization_report", None)
    weights = report.bytes_after if report else sum(p.nbytes for p in model.parameters())
    make: Callable[..., Any] = KVCache.for_model
    if kv_cache_bits:
        make = lambda m, b, t: QuantizedKVCache.for_model(m, b, t, bits=kv_cache_bits)  # noqa: E731
    cached = WithFreshCache(model, lambda batch, tokens: make(model, batch, tokens))
    return {
        "weights, MB": weights / 1e6,
        "memory, MB": (weights + make(model, 8, 512).nbytes) / 1e6,
        "perplexity": perplexity(cached, evaluation_tokens(lm)),
    }


async def serve_and_measure(
    lm: LanguageModel, kv_cache_bits: int | None, one: Sequence[Planned], eight: Sequence[Planned]
) -> dict[str, float]:
    """Tokens per second and latencies, over HTTP: ``one`` request after the other, then ``eight`` at a time."""
    engine = LLMEngine(lm, max_num_seqs=8, kv_cache_bits=kv_cache_bits, enable_prefix_caching=False)
    with serving(create_app(engine)) as url:
        await run_load(url, one[:1], concurrency=1, ignore_eos=True)  # to warm up
        alone = Report.of(await run_load(url, one, concurrency=1, ignore_eos=True))
        together = Report.of(await run_load(url, eight, concurrency=8, ignore_eos=True))
    return {
        "first token, ms": 1e3 * seconds(alone.time_to_first_token, "p50"),
        "next token, ms": 1e3 * seconds(alone.inter_token, "p50"),
        "tokens/s, one user": alone.tokens_per_second,
        "tokens/s, eight": together.tokens_per_second,
        "whole answer p95, eight, s": seconds(together.latency, "p95"),
    }


def seconds(found: Percentiles | None, which: str) -> float:
    """NaN if there is nothing to take a percentile of, such as the gaps of answers that came in one piece."""
    return math.nan if found is None else getattr(found, which)


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The table with three columns more, each relative to the untouched model."""
    untouched: Mapping[str, float] = table.loc[UNTOUCHED]
    return table.assign(
        **{
            "smaller": untouched["memory, MB"] / table["memory, MB"],
            "perplexity, times": table["perplexity"] / untouched["perplexity"],
            "tokens/s, eight, times": table["tokens/s, eight"] / untouched["tokens/s, eight"],
        }
    )


SIZES = ["weights, MB", "memory, MB", "smaller", "perplexity", "perplexity, times"]
SPEEDS = ["first token, ms", "next token, ms", "tokens/s, one user", "tokens/s, eight", "tokens/s, eight, times",
          "whole answer p95, eight, s"]  # fmt: skip
