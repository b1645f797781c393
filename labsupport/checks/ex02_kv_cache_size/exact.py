"""Sizes beyond floats and 64-bit integers."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import integer, judge_counts, lost_digits, spelled
from labsupport.checks.ex02_kv_cache_size.oracles import cache_bytes
from labsupport.checks.ex02_kv_cache_size.sizes import BYTES, NAMES, draw_sizes
from labsupport.checks.ex02_kv_cache_size.total import BYTES_FACTORS, BYTES_MISTAKES
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain, call


class CheckExact(Check):
    name = "check_exact"
    needs = (BYTES,)
    points = 1
    holds = "exact to the byte, however large the cache"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        data_center = [*draw_sizes(draw, 10**10 + 1), 2]  # over 2**53
        beyond = [*draw_sizes(draw, 10**15 + 1), 4]  # over 2**64
        return {spelled(NAMES, case): case for case in (data_center, beyond)}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[BYTES], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, arguments in inputs.items():
            value, right = integer(returned(values[case], case), BYTES, case), cache_bytes(*arguments)
            if value == right:
                continue
            if why := lost_digits(value, right):
                raise Wrong(f"for {case}, {BYTES} returned {value}, not {right}: {why}")
            judge_counts(BYTES, inputs, values, cache_bytes, BYTES_MISTAKES, BYTES_FACTORS)


check_exact = CheckExact()
