"""A singular Hessian: dead columns, and fewer inputs than columns."""

from __future__ import annotations

from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import correlated
from labsupport.checks.ex04_gptq.gptq_check import GPTQCheck
from labsupport.checks.ex04_gptq.oracles import output_error, round_to_nearest
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain


class CheckDeadColumns(GPTQCheck):
    name = "check_dead_columns"
    points = 2
    holds = "dead columns, and fewer inputs than columns, still give a finite weight that beats round-to-nearest's"

    def inputs(self, seed: int) -> dict[str, Any]:
        weight, x, _ = correlated(seed + 50, 16, 64, 512)
        dead = x.clone()
        dead[:, [3, 40, 41]] = 0
        return {
            "inputs with three columns of zeros": [weight, dead, 4, 32],
            "20 inputs for 64 columns": [weight, x[::26].clone(), 4, 32],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, x, bits, group_size) in inputs.items():
            hint = (
                "H is singular there: put 1 on the diagonal of dead columns and add 1 % of the mean diagonal (damping)"
            )
            result = read_weight(returned(values[case], case, hint), weight, case, hint)
            weight, seen = weight.double(), x.double().T @ x.double()
            nearest = output_error(weight, round_to_nearest(weight, bits, group_size), seen)
            error = output_error(weight, result, seen)
            if not error <= 0.8 * nearest:
                raise Wrong(
                    f"for {case} the output error on those very inputs "
                    f"is {error / nearest:.2g} of round-to-nearest's; {hint}"
                )


check_dead_columns = CheckDeadColumns()
