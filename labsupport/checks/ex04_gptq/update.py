"""Each column makes up for the errors of the columns before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import exact_inputs
from labsupport.checks.ex04_gptq.gptq_check import GPTQCheck
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain

FORMULA = (
    "e = (w[:, j] - q) / U[j, j], then w[:, j+1:] -= e[:, None] * U[j, j+1:], where UᵀU = H⁻¹ and U is upper triangular"
)
SLOPE_TOLERANCE = 0.4  # damping costs up to 5 %, clipping at the ends of the grid up to 20 %, noise 5 %


class CheckUpdate(GPTQCheck):
    name = "check_update"
    points = 4
    holds = "each column makes up for the errors of all columns before it, in its own group and in earlier ones"

    FIRST, MIDDLE, LAST, COLUMNS = 0, 32, 63, 64  # three columns that correlate, in two groups of 32

    def _hessian(self) -> Tensor:
        """Correlations 0.8, 0.8, 0.64: given FIRST, the others do not correlate, so H⁻¹ in place of its Cholesky factor
        would pass nothing on from MIDDLE to LAST. The diagonal decreases, so that act-order keeps the order of columns.
        """
        correlation = torch.eye(self.COLUMNS, dtype=torch.float64)
        for i, k, value in (
            (self.FIRST, self.MIDDLE, 0.8),
            (self.FIRST, self.LAST, 0.8),
            (self.MIDDLE, self.LAST, 0.64),
        ):
            correlation[i, k] = correlation[k, i] = value
        size = torch.linspace(50, 25, self.COLUMNS, dtype=torch.float64).sqrt()
        return correlation * size[:, None] * size

    def inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed + 30)
        weight = torch.randn(1024, self.COLUMNS, generator=generator, dtype=torch.float32)
        return {"three columns that correlate": [weight, exact_inputs(self._hessian()), 4, 32]}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        ((case, (weight, _, _, _)),) = inputs.items()
        weight, result = weight.double(), read_weight(returned(values[case], case), weight, case)
        error, hessian = weight - result, self._hessian()
        earlier = [self.FIRST, self.MIDDLE]
        wanted = hessian[self.LAST, earlier] / hessian[self.LAST, self.LAST]
        slopes = torch.linalg.lstsq(error[:, earlier], -error[:, [self.LAST]]).solution[:, 0] / wanted
        first, middle = slopes.tolist()
        if (slopes - 1).abs().max() <= SLOPE_TOLERANCE:
            return
        moved = (
            f"the last column makes up for {first:.2f} and {middle:.2f} of the errors of two earlier ones (1 is best)"
        )
        if first < 0 and abs(middle + 1) < SLOPE_TOLERANCE:
            raise Wrong(
                f"later columns move the wrong way, by the right amount: subtract the correction. {FORMULA} ({moved})"
            )
        if first < -0.2 and abs(middle) < SLOPE_TOLERANCE:
            raise Wrong(
                "later columns move the wrong way, as they do with the factor of H: U is that of H⁻¹, not of H. "
                f"{FORMULA} ({moved})"
            )
        if min(first, middle) < -SLOPE_TOLERANCE:
            raise Wrong(f"later columns move the wrong way: they add to the errors before them. {FORMULA} ({moved})")
        if abs(first) < SLOPE_TOLERANCE and abs(middle - 1) <= SLOPE_TOLERANCE:
            raise Wrong("errors stop at the end of their group: pass them on to the columns of all later groups too")
        if max(abs(first), abs(middle)) < SLOPE_TOLERANCE:
            raise Wrong(
                "later columns hardly compensate for earlier errors "
                f"(by {first:.2f} and {middle:.2f} of the best correction). {FORMULA}"
            )
        raise Wrong(
            f"the last column compensates for {first:.2f} and {middle:.2f} of the errors of two earlier ones, "
            "where 1 is best: is U the (upper) Cholesky factor of H⁻¹, not H⁻¹ itself, and the damping 1 % of H's mean "
            f"diagonal? {FORMULA}"
        )


check_update = CheckUpdate()
