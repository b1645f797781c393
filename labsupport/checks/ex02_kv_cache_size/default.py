"""An element takes 2 bytes unless the caller says otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import judge_counts, spelled
from labsupport.checks.ex02_kv_cache_size.oracles import cache_bytes
from labsupport.checks.ex02_kv_cache_size.sizes import BYTES, NAMES, draw_sizes
from labsupport.checks.ex02_kv_cache_size.total import BYTES_FACTORS, BYTES_MISTAKES
from labsupport.checks.plain import Plain, call


class CheckDefault(Check):
    name = "check_default"
    needs = (BYTES,)
    points = 1
    holds = "an element takes 2 bytes by default, and arguments can be passed by name"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        cases = [draw_sizes(draw), [*draw_sizes(draw), 1], draw_sizes(draw)]
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        named = {case: dict(zip(NAMES, arguments, strict=False)) for case, arguments in inputs.items()}
        return {case: call(answer[BYTES], **arguments)[0] for case, arguments in named.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        text = "without bytes_per_element an element takes 2 bytes (float16); your default is"
        mistakes = {f"{text} {default}": _with_default(default) for default in (1, 4, 8)}
        judge_counts(BYTES, inputs, values, cache_bytes, {**mistakes, **BYTES_MISTAKES}, BYTES_FACTORS)


def _with_default(default: int) -> Callable[..., int]:
    return lambda b, t, n, h, d, width=default: cache_bytes(b, t, n, h, d, width)


check_default = CheckDefault()
