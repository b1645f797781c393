"""Without correlation between inputs, GPTQ is round-to-nearest."""

from __future__ import annotations

from typing import Any

import torch

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import exact_inputs
from labsupport.checks.ex04_gptq.gptq_check import GPTQCheck
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain


class CheckGrid(GPTQCheck):
    name = "check_grid"
    points = 3
    holds = "every row and group has a scale of its own, and where inputs do not correlate GPTQ is round-to-nearest"

    def inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed + 10)
        weight = torch.randn(6, 80, generator=generator, dtype=torch.float32)
        rows = torch.logspace(-2, 0, 6, dtype=torch.float32)[:, None]
        groups = torch.tensor([1.0, 0.03, 0.3], dtype=torch.float32).repeat_interleave(32)[:80]
        return {
            "inputs that do not correlate": [weight, exact_inputs(torch.eye(80, dtype=torch.float64) * 9), 4, 32],
            "rows of different size": [weight * rows, exact_inputs(torch.eye(80, dtype=torch.float64)), 4, 32],
            "groups of different size": [weight * groups, exact_inputs(torch.eye(80, dtype=torch.float64)), 4, 32],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, _, bits, group_size) in inputs.items():
            result = read_weight(returned(values[case], case), weight, case)
            weight = weight.double()
            for index, (w, q) in enumerate(zip(weight.split(group_size, 1), result.split(group_size, 1), strict=True)):
                step = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)  # the coarsest symmetric grid's
                error = (q - w).abs()
                if not (error <= step * 1.001).all():
                    row = int((error / step).amax(1).argmax())
                    raise Wrong(
                        f"for {case}, row {row} of group {index} is up to {(error / step).max():.3g} steps off "
                        f"(a step is max|w| / {2 ** (bits - 1) - 1} of that row and group): "
                        "each row and each group needs a scale of its own"
                    )
                nearest = (w[:, :, None] - q[:, None, :]).abs().amin(2)
                if not (error <= nearest + 1e-2 * step).all():
                    raise Wrong(
                        f"for {case} (H is a multiple of the identity) no column can compensate for another, "
                        "yet weights are not on their nearest level: "
                        "is H = inputs.T @ inputs, and q rounded to the nearest?"
                    )


check_grid = CheckGrid()
