"""The cache's size: a product of seven factors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import judge_counts, spelled
from labsupport.checks.ex02_kv_cache_size.oracles import cache_bytes
from labsupport.checks.ex02_kv_cache_size.sizes import BYTES, NAMES, draw_sizes
from labsupport.checks.plain import Plain, call

BYTES_FACTORS: dict[str, Callable[..., int]] = {
    "the factor 2 of keys and values": lambda *sizes: 2,
    **{name: lambda *sizes, i=i: ([*sizes, 2])[i] for i, name in enumerate(NAMES)},
}
BYTES_MISTAKES: dict[str, Callable[..., int]] = {
    "a factor of 2 is missing: keys and values are both kept, those are the keys alone": lambda b, t, n, h, d, w=2: (
        b * t * n * h * d * w
    ),
    "that is one layer of one sequence; every layer and every sequence has keys and values of its own": (
        lambda b, t, n, h, d, w=2: 2 * t * h * d * w
    ),
    "that is one layer; each of num_layers has keys and values of its own": lambda b, t, n, h, d, w=2: (
        2 * b * t * h * d * w
    ),
    "that is one sequence; each of batch_size has keys and values of its own": lambda b, t, n, h, d, w=2: (
        2 * t * n * h * d * w
    ),
    "that is one token; all seq_len of them stay in the cache": lambda b, t, n, h, d, w=2: 2 * b * n * h * d * w,
    "that is one head; each of num_kv_heads has keys and values of its own": lambda b, t, n, h, d, w=2: (
        2 * b * t * n * d * w
    ),
    "head_dim is missing: a key is a vector of head_dim elements": lambda b, t, n, h, d, w=2: 2 * b * t * n * h * w,
    "those are elements, not bytes; multiply by bytes_per_element": lambda b, t, n, h, d, w=2: 2 * b * t * n * h * d,
    "that assumes 2 bytes for every element; use bytes_per_element": lambda b, t, n, h, d, w=2: 4 * b * t * n * h * d,
    "that assumes 4 bytes for every element; use bytes_per_element": lambda b, t, n, h, d, w=2: 8 * b * t * n * h * d,
    "those are bits; there are 8 in a byte": lambda b, t, n, h, d, w=2: 16 * b * t * n * h * d * w,
    "those are KiB; return bytes": lambda b, t, n, h, d, w=2: cache_bytes(b, t, n, h, d, w) // 2**10,
    "those are MiB; return bytes": lambda b, t, n, h, d, w=2: cache_bytes(b, t, n, h, d, w) // 2**20,
    "those are GiB, rounded down; return bytes": lambda b, t, n, h, d, w=2: cache_bytes(b, t, n, h, d, w) // 2**30,
    "scores grow with seq_len * seq_len, but they are not kept: the cache grows with seq_len": (
        lambda b, t, n, h, d, w=2: 2 * b * t * t * n * h * d * w
    ),
    "the next token is not in the cache yet; seq_len tokens are": (
        lambda b, t, n, h, d, w=2: cache_bytes(b, t + 1, n, h, d, w)
    ),
    "the last token is in the cache too, so there are seq_len tokens in it": lambda b, t, n, h, d, w=2: cache_bytes(
        b, t - 1, n, h, d, w
    ),
}


class CheckBytes(Check):
    name = "check_bytes"
    needs = (BYTES,)
    points = 4
    holds = "keys and values, of every sequence, token, layer and key-value head, times the bytes of an element"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        cases = [[*draw_sizes(draw), width] for width in (2, 4, 1)]
        cases.append([1, draw.choice([2048, 4096, 8192]), 32, 32, 128, 2])  # Llama 2 7B
        cases.append([1, 1, 1, 1, 1, 2])
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[BYTES], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(BYTES, inputs, values, cache_bytes, BYTES_MISTAKES, BYTES_FACTORS)


check_bytes = CheckBytes()
