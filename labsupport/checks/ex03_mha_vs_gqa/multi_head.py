"""Multi-head attention: four square projections."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import judge_counts, spelled
from labsupport.checks.ex03_mha_vs_gqa.oracles import PARAMETER_MISTAKES, num_parameters
from labsupport.checks.ex03_mha_vs_gqa.sizes import NAMES, PARAMETERS, draw_heads
from labsupport.checks.plain import Plain, call


class CheckMultiHead(Check):
    name = "check_multi_head"
    needs = (PARAMETERS,)
    points = 2
    holds = "with as many key-value heads as heads, four projections of hidden_size x hidden_size"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        cases = [draw_heads(draw, grouped=False) for _ in range(3)] + [[4096, 32, 32], [64, 1, 1]]
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[PARAMETERS], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        start = "with num_kv_heads == num_heads all four projections are alike"
        mistakes: dict[str, Callable[..., int]] = {
            "one of the four projections is missing: q_proj, k_proj, v_proj, o_proj": lambda h, heads, kv: 3 * h * h,
            f"that is two of the four projections; {start}": lambda h, heads, kv: 2 * h * h,
            f"that is what one of the four projections alone costs; {start}": lambda h, heads, kv: h * h,
            **PARAMETER_MISTAKES,
        }
        judge_counts(PARAMETERS, inputs, values, num_parameters, mistakes)


check_multi_head = CheckMultiHead()
