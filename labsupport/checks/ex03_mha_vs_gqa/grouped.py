"""Grouped queries: k_proj and v_proj shrink."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import judge_counts, spelled
from labsupport.checks.ex03_mha_vs_gqa.oracles import PARAMETER_MISTAKES, num_parameters
from labsupport.checks.ex03_mha_vs_gqa.sizes import NAMES, PARAMETERS, draw_heads
from labsupport.checks.plain import Plain, call


class CheckGrouped(Check):
    name = "check_grouped"
    needs = (PARAMETERS,)
    points = 3
    holds = "with fewer key-value heads k_proj and v_proj shrink, q_proj and o_proj stay"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        cases = [draw_heads(draw, grouped=True) for _ in range(3)]
        hidden, heads, _ = draw_heads(draw, grouped=True)
        cases += [[8192, 64, 8], [hidden, heads, 1]]  # Llama 2 70B, and multi-query
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[PARAMETERS], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(PARAMETERS, inputs, values, num_parameters, PARAMETER_MISTAKES)


check_grouped = CheckGrouped()
