"""The result depends on the inputs, and not on their unit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import correlated
from labsupport.checks.ex04_gptq.gptq_check import GPTQCheck
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain


class CheckUsesInputs(GPTQCheck):
    name = "check_uses_inputs"
    points = 2
    holds = "the result depends on the inputs, and not on their unit"

    def inputs(self, seed: int) -> dict[str, Any]:
        weight, x, _ = correlated(seed + 20, 16, 64, 512)
        _, other, _ = correlated(seed + 21, 16, 64, 512)
        return {
            "some inputs": [weight, x, 4, 32],
            "other inputs": [weight, other, 4, 32],
            "inputs times 16": [weight, x * 16, 4, 32],
            "inputs divided by 64": [weight, x / 64, 4, 32],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        weight = inputs["some inputs"][0]
        results = {case: read_weight(returned(values[case], case), weight, case) for case in inputs}
        some = results["some inputs"]
        if _moved(some, results["other inputs"]) < 0.02:
            raise Wrong(
                "the result is the same for different inputs: this is round-to-nearest; "
                "pass each column's error on to the columns after it, weighted by the inputs' H = inputs.T @ inputs "
                "(and check that U is upper triangular)"
            )
        for case, factor in (("inputs times 16", "multiplied by 16"), ("inputs divided by 64", "divided by 64")):
            if _moved(some, results[case]) > 0.02:  # a small constant damping may flip a few codes
                raise Wrong(
                    f"{_moved(some, results[case]):.0%} of the weights change when all inputs are {factor}, "
                    "though that multiplies every output error by the same factor: "
                    "divide the error by U[j, j], and make the damping a share of H's mean diagonal"
                )


def _moved(a: Tensor, b: Tensor) -> float:
    """Share of weights that differ."""
    return float(((a - b).abs() > 1e-4 * a.abs().mean()).double().mean())


check_uses_inputs = CheckUsesInputs()
