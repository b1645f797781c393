"""What all checks of this exercise have in common: the call of the one function."""

from __future__ import annotations

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.plain import Plain, call

DEFAULTS = {"bits": 4, "group_size": 64}


class GPTQCheck(Check):
    """All checks call the one function of this exercise. Inputs: a case -> [weight, inputs, bits, group_size], or
    [weight, inputs] to leave both at their defaults."""

    needs = ("gptq_quantize",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {
            case: call(answer["gptq_quantize"], weight, x, **dict(zip(DEFAULTS, options, strict=False)))[0]
            for case, (weight, x, *options) in inputs.items()
        }
