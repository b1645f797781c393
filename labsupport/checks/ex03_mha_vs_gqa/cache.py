"""Bytes that a token takes in the cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import judge_counts, spelled
from labsupport.checks.ex03_mha_vs_gqa.oracles import bytes_per_token
from labsupport.checks.ex03_mha_vs_gqa.sizes import PER_TOKEN, TOKEN_NAMES, draw_heads
from labsupport.checks.plain import Plain, call

CACHE_MISTAKES: dict[str, Callable[..., int]] = {
    "a factor of 2 is missing: keys and values are both kept, those are the keys alone": lambda n, h, q, kv, w=2: (
        n * kv * (h // q) * w
    ),
    "that is one layer; each of num_layers has keys and values of its own": lambda n, h, q, kv, w=2: (
        2 * kv * (h // q) * w
    ),
    "that is what all num_heads heads would keep; there are num_kv_heads, each hidden_size // num_heads wide": (
        lambda n, h, q, kv, w=2: 2 * n * h * w
    ),
    "that uses hidden_size as the width of a head; it is hidden_size // num_heads": (
        lambda n, h, q, kv, w=2: 2 * n * h * kv * w
    ),
    "that is one head; each of num_kv_heads has keys and values of its own": lambda n, h, q, kv, w=2: (
        2 * n * (h // q) * w
    ),
    "head_dim is missing: a key is a vector of hidden_size // num_heads elements": lambda n, h, q, kv, w=2: (
        2 * n * kv * w
    ),
    "those are elements, not bytes; multiply by bytes_per_element": lambda n, h, q, kv, w=2: 2 * n * kv * (h // q),
    "that assumes 2 bytes for every element; use bytes_per_element": lambda n, h, q, kv, w=2: 4 * n * kv * (h // q),
    "that assumes 4 bytes for every element; use bytes_per_element": lambda n, h, q, kv, w=2: 8 * n * kv * (h // q),
    "without bytes_per_element an element takes 2 bytes (float16); your default is 4": (
        lambda n, h, q, kv, w=4: 2 * n * kv * (h // q) * w
    ),
    "those are bits; there are 8 in a byte": lambda n, h, q, kv, w=2: 16 * n * kv * (h // q) * w,
    "queries are not kept, only keys and values": lambda n, h, q, kv, w=2: n * (h + 2 * kv * (h // q)) * w,
    "without bytes_per_element an element takes 2 bytes (float16); your default is 1": (
        lambda n, h, q, kv, w=1: 2 * n * kv * (h // q) * w
    ),
    "that divides by the heads that share a key twice; num_kv_heads is what is left of them already": (
        lambda n, h, q, kv, w=2: 2 * n * kv * (h // q) * w // (q // kv)
    ),
    "that is a group's num_heads // num_kv_heads heads; num_kv_heads heads are kept": (
        lambda n, h, q, kv, w=2: 2 * n * (q // kv) * (h // q) * w
    ),
    "that is hidden states, of hidden_size each; keys and values are kept in their place": (
        lambda n, h, q, kv, w=2: n * h * w
    ),
    "that gives a head hidden_size // num_kv_heads elements for each query head": (
        lambda n, h, q, kv, w=2: 2 * n * q * (h // kv) * w
    ),
}
CACHE_FACTORS: dict[str, Callable[..., int]] = {
    "the factor 2 of keys and values": lambda *sizes: 2,
    "num_layers": lambda n, h, q, kv, w=2: n,
    "num_kv_heads": lambda n, h, q, kv, w=2: kv,
    "head_dim": lambda n, h, q, kv, w=2: h // q,
    "bytes_per_element": lambda n, h, q, kv, w=2: w,
}


class CheckCache(Check):
    name = "check_cache"
    needs = (PER_TOKEN,)
    points = 3
    holds = "a token keeps a key and a value of head_dim elements for each key-value head of each layer"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        cases = [[draw.choice([11, 13, 23]), *draw_heads(draw, grouped=True), width] for width in (2, 4, 1)]
        cases.append([draw.choice([31, 37]), *draw_heads(draw, grouped=True)])  # 2 bytes an element by default
        hidden, heads, _ = draw_heads(draw, grouped=True)
        cases += [[7, hidden, heads, 1, 2], [32, 4096, 32, 32, 2]]
        return {spelled(TOKEN_NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[PER_TOKEN], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(PER_TOKEN, inputs, values, bytes_per_token, CACHE_MISTAKES, CACHE_FACTORS)


check_cache = CheckCache()
