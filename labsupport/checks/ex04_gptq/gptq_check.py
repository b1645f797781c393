"""What all checks of this exercise have in common: the call of the one function."""

from __future__ import annotations

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.plain import Plain, call


class GPTQCheck(Check):
    """All checks call the one function of this exercise. Inputs: a case -> [weight, inputs, bits, group_size]."""

    needs = ("gptq_quantize",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {
            case: call(answer["gptq_quantize"], weight, x, bits=bits, group_size=group_size)[0]
            for case, (weight, x, bits, group_size) in inputs.items()
        }
