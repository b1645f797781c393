"""The mask has exactly round(sparsity * n) zeros, whatever the ties."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.calling import MaskCheck
from labsupport.checks.ex07_prune_and_distill.drawing import normal
from labsupport.checks.ex07_prune_and_distill.mask_reading import read_mask
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckMaskCount(MaskCheck):
    name = "check_mask_count"
    points = 3
    holds = "the mask is bool, of the weight's shape, with exactly round(sparsity * n) zeros: ties or not, from 0 to 1"

    def inputs(self, seed: int) -> dict[str, Any]:
        weight, generator = normal(seed, 8, 12), torch.Generator().manual_seed(seed + 1)
        codes = torch.randint(-7, 8, (16, 16), generator=generator)
        some = torch.randn(200, generator=generator, dtype=torch.float32)
        drawn: dict[str, Any] = {
            f"a random weight [8, 12], sparsity={sparsity}": [weight, sparsity]
            for sparsity in (0.5, 0.3, 0.9, 0.0, 1.0, 0.001)
        }
        for sparsity in (0.1, 0.3, 0.5):
            drawn[f"a weight on 15 levels [16, 16], sparsity={sparsity}"] = [codes.float() * 0.05, sparsity]
        drawn["a weight of ones [10, 10], sparsity=0.1"] = [torch.ones(10, 10, dtype=torch.float32), 0.1]
        drawn["a weight [200] with 100 zeros in it, sparsity=0.25"] = [some * (some > some.median()), 0.25]
        drawn["a convolution's weight [4, 3, 3, 3], sparsity=0.7"] = [normal(seed + 2, 4, 3, 3, 3), 0.7]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, sparsity) in inputs.items():
            mask = read_mask(values[case], weight, case)
            size, wanted, zeros = weight.numel(), round(sparsity * weight.numel()), int((~mask).sum())
            if zeros == wanted:
                continue
            start = f"for {case} the mask has {zeros} zeros, round(sparsity * {size}) is {wanted}"
            if zeros == size and wanted == 0:
                raise Wrong(f"{start}: a slice such as [:-k] is empty where k is 0; at sparsity 0 all weights stay")
            if zeros == size - wanted:
                raise Wrong(f"{start}: True must mark the weights that stay, False those that go")
            if _is_threshold(mask, weight, wanted):
                raise Wrong(f"{start}: a threshold removes all weights of equal magnitude or none; choose k places")
            if zeros == int(sparsity * size):
                raise Wrong(f"{start}: int() rounds down, round() rounds to the nearest")
            raise Wrong(f"{start}: choose k = round(sparsity * weight.numel()) places of the whole weight")


def _is_threshold(mask: Tensor, weight: Tensor, wanted: int) -> bool:
    """Whether weights of the magnitude at the cut all stay or all go, where only some of them should."""
    magnitudes = weight.abs().flatten()
    cut = magnitudes.sort().values[max(wanted - 1, 0)]
    return bool((magnitudes == cut).sum() > 1) and (
        torch.equal(mask, weight.abs() > cut) or torch.equal(mask, weight.abs() >= cut)
    )


check_mask_count = CheckMaskCount()
