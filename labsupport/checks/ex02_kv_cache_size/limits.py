"""Memory that is exactly full, a byte short, or too small."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import integer, judge_counts, spelled
from labsupport.checks.ex02_kv_cache_size.batch_size import FIT_MISTAKES
from labsupport.checks.ex02_kv_cache_size.oracles import cache_bytes, num_that_fit
from labsupport.checks.ex02_kv_cache_size.sizes import FIT, FIT_NAMES, draw_sizes
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain, call


class CheckLimits(Check):
    name = "check_limits"
    needs = (FIT,)
    points = 2
    holds = "right at the limits: memory that is exactly full, a byte short, too small for one sequence, huge, or none"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 4)
        sizes, count = [*draw_sizes(draw)[1:], 2], draw.randrange(3, 90)
        one = cache_bytes(1, *sizes)
        large = [*sizes[:3], sizes[3] * 10**18 + 7, 2]
        cases = [[count * one, *sizes], [count * one - 1, *sizes], [one, *sizes]]
        cases += [[one - 1, *sizes], [one // 3, *sizes], [0, *sizes], [count * cache_bytes(1, *large) - 1, *large]]
        return {spelled(FIT_NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[FIT], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        got = {}
        for case, arguments in inputs.items():
            hint = "if nothing fits, the answer is 0" if num_that_fit(*arguments) == 0 else ""
            got[case] = integer(returned(values[case], case, hint), FIT, case)
        for text, mistake in FIT_MISTAKES.items():
            if all(got[case] == mistake(*arguments) for case, arguments in inputs.items()):
                judge_counts(FIT, inputs, values, num_that_fit, {text: mistake})
        for case, arguments in inputs.items():
            value, right, one = got[case], num_that_fit(*arguments), cache_bytes(1, *arguments[1:])
            if value == right:
                continue
            text = f"for {case}, {FIT} returned {value}"
            if right == 0:
                raise Wrong(f"{text}: one sequence takes {one} bytes and does not fit, so the answer is 0")
            if value == right + 1 and (arguments[0] + 1) % one == 0:
                raise Wrong(
                    f"{text}: the last one is a byte short, so {right} fit; "
                    "use // on whole numbers, neither floats nor rounding"
                )
            if value == right - 1 and arguments[0] % one == 0:
                raise Wrong(f"{text}: {right} fit exactly, no byte has to stay free")
            raise Wrong(
                f"{text}, not {right}: a sequence takes {one} bytes, {arguments[0]} // {one} is {right}; "
                "if check_batch_size fails, let it pass first"
            )


check_limits = CheckLimits()
