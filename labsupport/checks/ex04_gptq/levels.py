"""Each row and group of the result holds at most 2^bits values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import correlated, exact_inputs
from labsupport.checks.ex04_gptq.gptq_check import DEFAULTS, GPTQCheck
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned, unchanged
from labsupport.checks.plain import Plain

SAME = 1e-5  # of the group's range: (q - z) * s and q * s - z * s round differently


class CheckLevels(GPTQCheck):
    name = "check_levels"
    points = 4
    holds = "the result is a float [out, in], at most 2**bits levels a row and group; the arguments stay as they were"

    def inputs(self, seed: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for i, (out, columns, bits, group_size) in enumerate(
            [(8, 64, 4, 32), (6, 64, 3, 32), (5, 64, 2, 64), (6, 88, 3, 64)]
        ):
            weight, x, _ = correlated(seed + i, out, columns, 256)
            groups = f"{columns // group_size} groups" + (
                f" and one of {columns % group_size}" if columns % group_size else ""
            )
            drawn[f"[{out}, {columns}], bits={bits}, group_size={group_size} ({groups})"] = [
                weight, x, bits, group_size,
            ]  # fmt: skip
        generator = torch.Generator().manual_seed(seed + 4)
        weight, x, source = (torch.randn(n, 160, generator=generator, dtype=torch.float32) for n in (6, 400, 400))
        drawn["[6, 160], no bits and no group_size given (4 and 64)"] = [weight, x + source[:, :1]]
        drawn["[16, 64], bits=3, group_size=64, updates that leave the grid"] = [*_large_and_small(seed + 5), 3, 64]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, _, *options) in inputs.items():
            bits, group_size = options or DEFAULTS.values()
            result = read_weight(returned(values[case], case), weight, case)
            unchanged(values[case], case, "weight", "inputs")
            if torch.equal(result, weight.double()):
                raise Wrong(f"for {case} the weight comes back unchanged: nothing is quantized")
            for group, (w, q) in enumerate(zip(weight.split(group_size, 1), result.split(group_size, 1), strict=True)):
                counts = torch.tensor([len(_levels(row)) for row in q])
                if counts.max() > 2**bits:
                    row = int(counts.argmax())
                    raise Wrong(
                        f"for {case}, row {row} of group {group} is on {counts[row]} levels; {bits} bits allow "
                        f"{2**bits}: {_why_too_many(w[row].double(), _levels(q[row]), bits)}"
                    )
            if torch.equal(result, result.round()) and result.abs().max() < 2**bits:
                raise Wrong(f"for {case} codes come back, not weights: return (q - zero_point) * scale")


def _large_and_small(seed: int) -> list[Tensor]:
    """A weight [16, 64] and inputs of which the last 32 are nearly the first 32, five times smaller: each error moves
    one later weight, which is at an end of its range, by more than a step in half of the cases."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(-1, 1, 32, dtype=torch.float32)
    large = torch.stack([spread[torch.randperm(32, generator=generator)] for _ in range(16)])
    ends = 2.0 * torch.randint(2, (16, 32), generator=generator) - 1
    size = torch.tensor([5.0, 1.0], dtype=torch.float64).repeat_interleave(32)
    same = 0.97 * torch.eye(32, dtype=torch.float64).repeat(2, 2)
    return [torch.cat([large, ends], 1), exact_inputs(same.fill_diagonal_(1) * size[:, None] * size)]


def _levels(row: Tensor) -> Tensor:
    """The different values of a row and group, ascending."""
    ordered = row.sort().values
    apart = ordered.diff() > SAME * (ordered[-1] - ordered[0]).clamp(min=1e-30)
    return torch.cat([ordered[:1], ordered[1:][apart]])


def _why_too_many(weight: Tensor, levels: Tensor, bits: int) -> str:
    """``weight`` and ``levels`` are of one row and group."""
    gaps = levels.diff()
    step = gaps.min()
    if ((gaps / step - (gaps / step).round()).abs() > 0.02).any():
        return "they lie on no grid; leave columns alone once they are rounded, and give a row of a group one scale"
    if (weight.max().clamp(min=0) - weight.min().clamp(max=0)) / step > 1.5 * 2**bits:
        return f"its steps of {step:.3g} are too narrow; the grid must follow from bits and the group's range"
    return "clamp the codes to the grid: the update moves weights beyond the range that the scale was made for"


check_levels = CheckLevels()
