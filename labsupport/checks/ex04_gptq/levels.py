"""Each row and group of the result holds at most 2^bits values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import correlated
from labsupport.checks.ex04_gptq.gptq_check import GPTQCheck
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned, unchanged
from labsupport.checks.plain import Plain


class CheckLevels(GPTQCheck):
    name = "check_levels"
    points = 4
    holds = "the result is a float [out, in], at most 2**bits levels a row and group; the arguments stay as they were"

    def inputs(self, seed: int) -> dict[str, Any]:
        drawn = {}
        for i, (out, columns, bits, group_size) in enumerate(
            [(8, 64, 4, 32), (6, 64, 3, 32), (5, 64, 2, 64), (6, 88, 3, 64)]
        ):
            weight, x, _ = correlated(seed + i, out, columns, 256)
            groups = f"{columns // group_size} groups" + (
                f" and one of {columns % group_size}" if columns % group_size else ""
            )
            drawn[f"[{out}, {columns}], bits={bits}, group_size={group_size} ({groups})"] = [
                weight,
                x,
                bits,
                group_size,
            ]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, _, bits, group_size) in inputs.items():
            result = read_weight(returned(values[case], case), weight, case)
            unchanged(values[case], case, "weight", "inputs")
            if torch.equal(result, weight.double()):
                raise Wrong(f"for {case} the weight comes back unchanged: nothing is quantized")
            most, (row, group) = _most_levels(result, group_size)
            if most > 2**bits:
                raise Wrong(
                    f"for {case}, row {row} of group {group} is on {most} levels; {bits} bits allow {2**bits}: "
                    "clamp the codes to the grid after the update too, and leave columns alone once they are rounded"
                )
            if torch.equal(result, result.round()) and result.abs().max() < 2**bits:
                raise Wrong(f"for {case} codes come back, not weights: return (q - zero_point) * scale")


def _most_levels(result: Tensor, group_size: int) -> tuple[int, tuple[int, int]]:
    """The largest number of different values in a row and group, and where. Values that differ by 1e-5 of the group's
    range count as one level: (q - z) * s and q * s - z * s round differently."""
    most, where = 0, (0, 0)
    for group, columns in enumerate(result.split(group_size, 1)):
        ordered = columns.sort(1).values
        span = (ordered[:, -1:] - ordered[:, :1]).clamp(min=1e-30)
        levels = (ordered.diff(dim=1) > 1e-5 * span).sum(1) + 1
        if levels.max() > most:
            most, where = int(levels.max()), (int(levels.argmax()), group)
    return most, where


check_levels = CheckLevels()
