"""How many whole sequences fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import judge_counts, spelled
from labsupport.checks.ex02_kv_cache_size.oracles import cache_bytes, num_that_fit
from labsupport.checks.ex02_kv_cache_size.sizes import FIT, FIT_NAMES, draw_sizes
from labsupport.checks.plain import Plain, call

FIT_MISTAKES: dict[str, Callable[..., int]] = {
    "that is one more than fits; round down, a part of a sequence does not count": lambda m, *sizes: (
        -(-m // cache_bytes(1, *sizes))
    ),
    "that is one too few; the last whole sequence fits too": lambda m, *sizes: num_that_fit(m, *sizes) - 1,
    "that is rounded to the nearest; a part of a sequence does not count": (
        lambda m, *sizes: (2 * m + cache_bytes(1, *sizes)) // (2 * cache_bytes(1, *sizes))
    ),
    "that treats memory_bytes as GiB; it is in bytes already": lambda m, *sizes: m * 2**30 // cache_bytes(1, *sizes),
    "those are tokens, not sequences; a sequence takes seq_len of them": (
        lambda m, tokens, *sizes: m // cache_bytes(1, 1, *sizes)
    ),
    "that counts the keys and values of one layer; a sequence has those of num_layers": (
        lambda m, tokens, layers, *sizes: m // cache_bytes(1, tokens, 1, *sizes)
    ),
    "a sequence keeps keys and values, twice what you count": lambda m, *sizes: 2 * m // cache_bytes(1, *sizes),
    "that assumes 2 bytes for every element; use bytes_per_element": (
        lambda m, t, n, h, d, width=2: m // cache_bytes(1, t, n, h, d, 2)
    ),
    "that assumes 1 byte for every element; use bytes_per_element": (
        lambda m, t, n, h, d, width=2: m // cache_bytes(1, t, n, h, d, 1)
    ),
    "without bytes_per_element an element takes 2 bytes (float16); your default is 4": (
        lambda m, t, n, h, d, width=4: m // cache_bytes(1, t, n, h, d, width)
    ),
    "without bytes_per_element an element takes 2 bytes (float16); your default is 1": (
        lambda m, t, n, h, d, width=1: m // cache_bytes(1, t, n, h, d, width)
    ),
    "that counts bits for a sequence, and bytes for the memory; there are 8 bits in a byte": (
        lambda m, *sizes: m // (8 * cache_bytes(1, *sizes))
    ),
    "that takes memory_bytes for bits; it is in bytes already": lambda m, *sizes: 8 * m // cache_bytes(1, *sizes),
    "keys and values are counted twice; kv_cache_bytes has both already": lambda m, *sizes: (
        m // (2 * cache_bytes(1, *sizes))
    ),
    "that counts the keys and values of one head; a sequence has those of num_kv_heads": (
        lambda m, t, n, h, *rest: m // cache_bytes(1, t, n, 1, *rest)
    ),
    "head_dim is missing: a key is a vector of head_dim elements": (
        lambda m, t, n, h, d, *rest: m // cache_bytes(1, t, n, h, 1, *rest)
    ),
    "those are the bytes left over; the quotient is asked for, m // n": lambda m, *sizes: m % cache_bytes(1, *sizes),
    "that is what one sequence takes; how many times does it fit into memory_bytes?": (
        lambda m, *sizes: cache_bytes(1, *sizes)
    ),
    "the weights are subtracted from memory_bytes already, and no share of it need stay free": (
        lambda m, *sizes: m * 9 // (10 * cache_bytes(1, *sizes))
    ),
}


class CheckBatchSize(Check):
    name = "check_batch_size"
    needs = (FIT,)
    points = 2
    holds = "the number of whole sequences that fit into the memory"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        cases = []
        for width, thirds in ((2, 1), (4, 2), (1, 1), (None, 2)):
            sizes = draw_sizes(draw)[1:] + ([] if width is None else [width])
            one = cache_bytes(1, *sizes)
            cases.append([draw.randrange(20, 200) * one + thirds * one // 3, *sizes])
        return {spelled(FIT_NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[FIT], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(FIT, inputs, values, num_that_fit, FIT_MISTAKES)


check_batch_size = CheckBatchSize()
