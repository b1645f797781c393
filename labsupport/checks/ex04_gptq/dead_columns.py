"""A singular Hessian: dead columns, and fewer inputs than columns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import correlated
from labsupport.checks.ex04_gptq.gptq_check import GPTQCheck
from labsupport.checks.ex04_gptq.oracles import output_error, round_to_nearest
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain

NO_DEAD = "inputs with no dead column"  # for comparison: what fails there too has another cause
HINT = "H is singular there: put 1 on the diagonal of dead columns and add 1 % of the mean diagonal (damping)"


class CheckDeadColumns(GPTQCheck):
    name = "check_dead_columns"
    points = 2
    holds = "dead columns, and fewer inputs than columns, still give a finite weight that beats round-to-nearest's"

    def inputs(self, seed: int) -> dict[str, Any]:
        weight, x, _ = correlated(seed + 50, 16, 64, 512)
        dead = x / 2  # 1 % of H's mean diagonal is less than 1 then: -1 in place of 1 shows
        dead[:, [3, 40, 41]] = 0
        return {
            "inputs with three columns of zeros": [weight, dead, 4, 32],
            "20 inputs for 64 columns": [weight, x[::26].clone(), 4, 32],
            NO_DEAD: [weight, x, 4, 32],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case in inputs:
            if case == NO_DEAD:
                continue
            try:
                _beats_rounding(case, inputs[case], values[case], HINT)
            except Wrong as wrong:
                if not wrong.attempted:
                    raise
                try:
                    _beats_rounding(NO_DEAD, inputs[NO_DEAD], values[NO_DEAD])
                except Wrong as elsewhere:
                    raise Wrong(
                        f"{elsewhere}; dead columns are not the cause: let the checks above pass first"
                    ) from None
                raise


def _beats_rounding(case: str, given: list[Any], outcome: Any, hint: str = "") -> None:
    weight, x, bits, group_size = given
    result = read_weight(returned(outcome, case, hint), weight, case, hint)
    weight, seen = weight.double(), _hessian(x)
    nearest = output_error(weight, round_to_nearest(weight, bits, group_size), seen)
    error = output_error(weight, result, seen)
    if not error <= 0.8 * nearest:
        raise Wrong(
            f"for {case} the output error on those very inputs is {error / nearest:.2g} of round-to-nearest's"
            f"{hint and '; '}{hint}"
        )


def _hessian(x: Tensor) -> Tensor:
    return x.double().T @ x.double()


check_dead_columns = CheckDeadColumns()
