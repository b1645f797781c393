"""The output error on inputs that the student's function has not seen."""

from __future__ import annotations

from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import correlated
from labsupport.checks.ex04_gptq.gptq_check import GPTQCheck
from labsupport.checks.ex04_gptq.oracles import coarsest_gptq, output_error, round_to_nearest
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain

ERROR_TOLERANCE = 1.6  # right variants reach 0.4 to 1.1 times the reference error, wrong ones 2.2 times and more


class CheckOutputError(GPTQCheck):
    name = "check_output_error"
    points = 5
    holds = "on inputs never seen, the output error is well below round-to-nearest's, as low as GPTQ should get it"

    def inputs(self, seed: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for i, bits in enumerate((4, 3)):
            weight, x, covariance = correlated(seed + 40 + i, 48, 96, 1024)
            drawn[f"{bits} bits"] = [weight, x, bits, 32]
            drawn[f"_{bits} bits"] = covariance  # the held-out side: it stays with the judge
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case in [key for key in inputs if not key.startswith("_")]:
            weight, x, bits, group_size = inputs[case]
            covariance = inputs[f"_{case}"]
            weight, result = weight.double(), read_weight(returned(values[case], case), weight, case)
            error = output_error(weight, result, covariance)
            nearest = output_error(weight, round_to_nearest(weight, bits, group_size), covariance)
            reachable = output_error(weight, coarsest_gptq(weight, x, bits, group_size), covariance)
            if not error <= min(ERROR_TOLERANCE * reachable, 0.8 * nearest):
                raise Wrong(
                    f"at {case} the output error on new inputs is {error / nearest:.2f} of round-to-nearest's, "
                    f"GPTQ reaches {reachable / nearest:.2f}: "
                    "is H summed over all rows of inputs, and does each error reach every later column?"
                )


check_output_error = CheckOutputError()
