"""Exercise 2: how large a KV cache is, and how many sequences fit.

Both answers are whole numbers with one right value: products, and a quotient rounded down. Sizes are drawn as odd
numbers that differ from each other, so that a forgotten factor shows, and can be named.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from labsupport.checks import Check, Exercise
from labsupport.checks.counting import integer, judge_counts, spelled
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain, call

Answer = Mapping[str, Callable[..., Any]]
Inputs = Mapping[str, Any]

BYTES = "kv_cache_bytes"
NAMES = ("batch_size", "seq_len", "num_layers", "num_kv_heads", "head_dim", "bytes_per_element")
FIT = "max_batch_size"
FIT_NAMES = ("memory_bytes", *NAMES[1:])


def _sizes(draw: random.Random, scale: int = 1) -> list[int]:
    """[batch_size, seq_len, num_layers, num_kv_heads, head_dim], no two alike."""
    return [
        draw.choice([3, 5, 7]) * scale,
        draw.randrange(101, 2000, 2) * scale,
        draw.choice([11, 13, 23, 31]),
        draw.choice([9, 15, 21]),
        draw.choice([33, 65, 95]),
    ]


class CheckBytes(Check):
    name = "check_bytes"
    needs = (BYTES,)
    points = 4
    holds = "keys and values, of every sequence, token, layer and key-value head, times the bytes of an element"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        cases = [[*_sizes(draw), width] for width in (2, 4, 1)]
        cases.append([1, draw.choice([2048, 4096, 8192]), 32, 32, 128, 2])  # Llama 2 7B
        cases.append([1, 1, 1, 1, 1, 2])
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[BYTES], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(BYTES, inputs, values, _bytes, BYTES_MISTAKES)


class CheckDefault(Check):
    name = "check_default"
    needs = (BYTES,)
    points = 1
    holds = "an element takes 2 bytes where nothing else is said, and arguments go by name"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        cases = [_sizes(draw), [*_sizes(draw), 1], _sizes(draw)]
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        named = {case: dict(zip(NAMES, arguments, strict=False)) for case, arguments in inputs.items()}
        return {case: call(answer[BYTES], **arguments)[0] for case, arguments in named.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        text = "without bytes_per_element an element takes 2 bytes (float16); your default is"
        mistakes = {f"{text} {default}": _with_default(default) for default in (1, 4, 8)}
        judge_counts(BYTES, inputs, values, _bytes, mistakes)


class CheckExact(Check):
    name = "check_exact"
    needs = (BYTES,)
    points = 1
    holds = "exact to the byte, however large the cache"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        data_center, beyond = [*_sizes(draw, 10_001), 2], [*_sizes(draw, 10_000_019), 4]  # over 2**53, over 2**63
        return {spelled(NAMES, case): case for case in (data_center, beyond)}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[BYTES], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, arguments in inputs.items():
            value, right = integer(returned(values[case], case), BYTES, case), _bytes(*arguments)
            if value != right:
                raise Wrong(
                    f"for {case}, {BYTES} returned {value}, not {right}: floats are exact up to 2**53 only, numpy's "
                    "and torch's integers up to 2**63; Python's int has no limit"
                )


class CheckBatchSize(Check):
    name = "check_batch_size"
    needs = (FIT,)
    points = 2
    holds = "as many sequences as the memory holds whole"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        cases = []
        for width, thirds in ((2, 1), (4, 2), (1, 1), (None, 2)):
            sizes = _sizes(draw)[1:] + ([] if width is None else [width])
            one = _bytes(1, *sizes)
            cases.append([draw.randrange(20, 200) * one + thirds * one // 3, *sizes])
        return {spelled(FIT_NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[FIT], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(FIT, inputs, values, _fit, FIT_MISTAKES)


class CheckLimits(Check):
    name = "check_limits"
    needs = (FIT,)
    points = 2
    holds = "right at the limits: memory that is exactly full, a byte short, too small for one sequence, huge, or none"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 4)
        sizes, count = [*_sizes(draw)[1:], 2], draw.randrange(3, 90)
        one = _bytes(1, *sizes)
        large = [sizes[0] * 10**15 + 7, *sizes[1:]]
        cases = [[count * one, *sizes], [count * one - 1, *sizes], [one, *sizes]]
        cases += [[one - 1, *sizes], [one // 3, *sizes], [0, *sizes], [count * _bytes(1, *large) - 1, *large]]
        return {spelled(FIT_NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[FIT], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, arguments in inputs.items():
            hint = "where nothing fits the answer is 0" if _fit(*arguments) == 0 else ""
            value, right = integer(returned(values[case], case, hint), FIT, case), _fit(*arguments)
            if value == right:
                continue
            one = _bytes(1, *arguments[1:])
            if right == 0:
                raise Wrong(
                    f"for {case}, {FIT} returned {value}: one sequence takes {one} bytes and does not fit, so the "
                    "answer is 0"
                )
            if value == right + 1 and (arguments[0] + 1) % one == 0:
                raise Wrong(
                    f"for {case}, {FIT} returned {value}: the last one is a byte short, so {right} fit; use // on "
                    "whole numbers, neither floats nor rounding"
                )
            if value == right - 1 and arguments[0] % one == 0:
                raise Wrong(f"for {case}, {FIT} returned {value}: {right} fit exactly, no byte need stay free")
            raise Wrong(f"for {case}, {FIT} returned {value}, not {right}")


# Oracles, and what goes wrong -----------------------------------------------------------------------------------------


def _bytes(batch: int, tokens: int, layers: int, heads: int, dim: int, width: int = 2) -> int:
    return 2 * batch * tokens * layers * heads * dim * width


def _fit(memory: int, tokens: int, layers: int, heads: int, dim: int, width: int = 2) -> int:
    return memory // _bytes(1, tokens, layers, heads, dim, width)


def _with_default(default: int) -> Callable[..., int]:
    return lambda b, t, n, h, d, width=default: _bytes(b, t, n, h, d, width)


BYTES_MISTAKES: dict[str, Callable[..., int]] = {
    "a factor of 2 is missing, since keys and values are both kept": lambda b, t, n, h, d, w: b * t * n * h * d * w,
    "that is one layer of one sequence; every layer and every sequence has keys and values of its own": (
        lambda b, t, n, h, d, w: 2 * t * h * d * w
    ),
    "that is one layer; each of num_layers has keys and values of its own": lambda b, t, n, h, d, w: (
        2 * b * t * h * d * w
    ),
    "that is one sequence; each of batch_size has keys and values of its own": lambda b, t, n, h, d, w: (
        2 * t * n * h * d * w
    ),
    "that is one token; all seq_len of them stay in the cache": lambda b, t, n, h, d, w: 2 * b * n * h * d * w,
    "that is one head; each of num_kv_heads has keys and values of its own": lambda b, t, n, h, d, w: (
        2 * b * t * n * d * w
    ),
    "head_dim is missing: a key is a vector of head_dim elements": lambda b, t, n, h, d, w: 2 * b * t * n * h * w,
    "those are elements, not bytes; multiply by bytes_per_element": lambda b, t, n, h, d, w: 2 * b * t * n * h * d,
    "that takes 2 bytes for every element; use bytes_per_element": lambda b, t, n, h, d, w: 4 * b * t * n * h * d,
    "that takes 4 bytes for every element; use bytes_per_element": lambda b, t, n, h, d, w: 8 * b * t * n * h * d,
    "those are bits; there are 8 in a byte": lambda b, t, n, h, d, w: 16 * b * t * n * h * d * w,
    "those are KiB; return bytes": lambda b, t, n, h, d, w: _bytes(b, t, n, h, d, w) // 2**10,
    "those are MiB; return bytes": lambda b, t, n, h, d, w: _bytes(b, t, n, h, d, w) // 2**20,
    "those are GiB, cut off; return bytes": lambda b, t, n, h, d, w: _bytes(b, t, n, h, d, w) // 2**30,
    "scores grow with seq_len * seq_len, but they are not kept: the cache grows with seq_len": (
        lambda b, t, n, h, d, w: 2 * b * t * t * n * h * d * w
    ),
    "the token that comes next is not in the cache yet; seq_len tokens are": (
        lambda b, t, n, h, d, w: _bytes(b, t + 1, n, h, d, w)
    ),
    "the last token is in the cache too: seq_len tokens are": lambda b, t, n, h, d, w: _bytes(b, t - 1, n, h, d, w),
}

FIT_MISTAKES: dict[str, Callable[..., int]] = {
    "that is one more than fits; round down, a part of a sequence is no sequence": lambda m, *sizes: (
        -(-m // _bytes(1, *sizes))
    ),
    "that is one too few; the last whole sequence fits as well": lambda m, *sizes: _fit(m, *sizes) - 1,
    "that is rounded to the nearest; a part of a sequence is no sequence": (
        lambda m, *sizes: (2 * m + _bytes(1, *sizes)) // (2 * _bytes(1, *sizes))
    ),
    "that takes memory_bytes for GiB; it is in bytes already": lambda m, *sizes: m * 2**30 // _bytes(1, *sizes),
    "those are tokens, not sequences; a sequence takes seq_len of them": (
        lambda m, tokens, *sizes: m // _bytes(1, 1, *sizes)
    ),
    "that gives a sequence the keys of one layer; it has those of num_layers": (
        lambda m, tokens, layers, *sizes: m // _bytes(1, tokens, 1, *sizes)
    ),
    "a sequence keeps keys and values, twice of what you count": lambda m, *sizes: 2 * m // _bytes(1, *sizes),
    "that takes 2 bytes for every element; use bytes_per_element": (
        lambda m, t, n, h, d, width=2: m // _bytes(1, t, n, h, d, 2)
    ),
    "that takes 1 byte for every element; use bytes_per_element": (
        lambda m, t, n, h, d, width=2: m // _bytes(1, t, n, h, d, 1)
    ),
}

check_bytes, check_default, check_exact = CheckBytes(), CheckDefault(), CheckExact()
check_batch_size, check_limits = CheckBatchSize(), CheckLimits()

EXERCISE = Exercise(
    name="ex02_kv_cache_size",
    checks=(check_bytes, check_default, check_exact, check_batch_size, check_limits),
)
