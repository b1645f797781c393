"""The weights that go are those of smallest magnitude."""

from __future__ import annotations

from typing import Any

import torch

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.calling import MaskCheck
from labsupport.checks.ex07_prune_and_distill.drawing import normal
from labsupport.checks.ex07_prune_and_distill.mask_reading import read_mask
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckMaskSmallest(MaskCheck):
    name = "check_mask_smallest"
    points = 2
    holds = "the weights that go are those of smallest magnitude"

    def inputs(self, seed: int) -> dict[str, Any]:
        rows = torch.logspace(-1, 1, 6, dtype=torch.float32)[:, None]
        return {
            "a random weight [8, 12], sparsity=0.5": [normal(seed + 5, 8, 12), 0.5],
            "a weight [6, 20] whose rows differ in size, sparsity=0.4": [normal(seed + 6, 6, 20) * rows, 0.4],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, sparsity) in inputs.items():
            mask, size = read_mask(values[case], weight, case), weight.abs()
            if not mask.any() or mask.all() or size[~mask].max() <= size[mask].min():
                continue
            start = (
                f"for {case} a weight of magnitude {size[~mask].max():.3g} goes and one of {size[mask].min():.3g} stays"
            )
            if size[~mask].min() >= size[mask].max():
                raise Wrong(f"{start}: the largest weights go; True must mark the weights that stay")
            if weight[~mask].max() <= weight[mask].min():
                raise Wrong(f"{start}: magnitude is the absolute value, so large negative weights stay")
            if len({int(row.sum()) for row in mask}) == 1 and round(sparsity * weight.shape[1]) > 0:
                raise Wrong(f"{start}: rank all weights of the tensor together, not each row by itself")
            raise Wrong(f"{start}: the k smallest of weight.abs() must go")


check_mask_smallest = CheckMaskSmallest()
