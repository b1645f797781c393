"""The output error on inputs that the student's function has not seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
        """The held-out side, named `_like_this`, stays with the judge: the inputs' covariance, and their mean."""
        drawn: dict[str, Any] = {}
        for i, (case, bits) in enumerate({"4 bits": 4, "3 bits": 3, "4 bits, inputs with a mean": 4}.items()):
            weight, x, covariance = correlated(seed + 40 + i, 48, 96, 1024)
            mean = torch.zeros(96, dtype=torch.float64)
            if "mean" in case:  # as large as the inputs' whole spread
                direction = torch.randn(96, generator=torch.Generator().manual_seed(seed + 45), dtype=torch.float64)
                mean = direction / direction.norm() * covariance.trace().sqrt()
            drawn[case] = [weight, x + mean.float(), bits, 32]
            drawn[f"_{case}"] = [covariance, mean]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case in [key for key in inputs if not key.startswith("_")]:
            weight, x, bits, group_size = inputs[case]
            covariance, mean = inputs[f"_{case}"]
            weight, result = weight.double(), read_weight(returned(values[case], case), weight, case)
            rounded = round_to_nearest(weight, bits, group_size)
            best = coarsest_gptq(weight, x, bits, group_size)
            moment = covariance + torch.outer(mean, mean)
            error, nearest, reachable = (output_error(weight, each, moment) for each in (result, rounded, best))
            if error <= min(ERROR_TOLERANCE * reachable, 0.8 * nearest):
                continue
            text = (
                f"at {case} the output error on new inputs is {error / nearest:.2f} of round-to-nearest's, "
                f"GPTQ reaches {reachable / nearest:.2f}: "
            )
            if mean.any() and _good_but_for_the_mean(weight, result, rounded, covariance, mean):
                raise Wrong(
                    f"{text}the error is small around the inputs' mean, and large along it; "
                    "H is inputs.T @ inputs, not the covariance: subtract no mean"
                )
            raise Wrong(f"{text}is H summed over all rows of inputs, and does each error reach every later column?")


def _good_but_for_the_mean(weight: Tensor, result: Tensor, rounded: Tensor, covariance: Tensor, mean: Tensor) -> bool:
    along = torch.outer(mean, mean)
    around = output_error(weight, result, covariance) / output_error(weight, rounded, covariance)
    return around < 0.5 and output_error(weight, result, along) > 0.3 * output_error(weight, rounded, along)


check_output_error = CheckOutputError()
