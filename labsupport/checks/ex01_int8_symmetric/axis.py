"""A scale for each slice along an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.ex01_int8_symmetric.drawing import normal, with_both_signs
from labsupport.checks.ex01_int8_symmetric.oracles import close, compare_codes, scale_mistake, true_scales
from labsupport.checks.ex01_int8_symmetric.reading import broadcast_scale, read_codes, read_quantized
from labsupport.checks.judging import Wrong, float_tensor, unchanged
from labsupport.checks.plain import Plain, call


class CheckAxis(Check):
    name = "check_axis"
    needs = ("quantize_int8",)
    points = 2
    holds = "with axis=d every index of dimension d has a scale of its own, and scales broadcast against x"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b = (with_both_signs(each) for each in normal(seed + 2, (4, 6), (2, 3, 5)))
        # one row of outliers must not cost the other rows their precision
        rows = a * torch.tensor([0.01, 1.0, 30.0, 0.3], dtype=torch.float32)[:, None]
        return {
            "a 4 x 6 matrix, axis=0": [rows, 0],
            "a 4 x 6 matrix, axis=1": [rows, 1],
            "a 4 x 6 matrix, axis=-1": [rows, -1],
            "a 2 x 3 x 5 tensor, axis=0": [b, 0],
            "a 2 x 3 x 5 tensor, axis=1": [b, 1],
            "a 2 x 3 x 5 tensor, axis=-1": [b, -1],
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer["quantize_int8"], x, axis=axis)[0] for case, (x, axis) in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (x, axis) in inputs.items():
            q, scale = read_quantized(values[case], case)
            unchanged(values[case], case, "x")
            wanted = true_scales(x.double(), axis)
            scale = float_tensor(scale, f"for {case}, scale")
            if scale.numel() == 1:
                raise Wrong(
                    f"for {case} there is a single scale; "
                    f"there must be {wanted.numel()}, one for each slice along the axis"
                )
            spread = broadcast_scale(scale, x, case)
            if scale.numel() != wanted.numel():
                raise Wrong(
                    f"for {case} the scales are not max|x| / 127 of each slice along the axis: "
                    f"got shape {list(scale.shape)}, must be {list(wanted.shape)}; "
                    "`axis` is the dimension that keeps its own scales, reduce over all others"
                )
            _compare_scales(spread, x.double(), wanted, axis % x.dim(), case)
            compare_codes(read_codes(q, x, case), x.double(), wanted, case)


def _compare_scales(spread: Tensor, x: Tensor, wanted: Tensor, axis: int, case: str) -> None:
    """``spread``: the scales that came back, of x's shape; the first that is off is shown with its slice."""
    if close(spread, wanted.broadcast_to(x.shape)):
        return
    for index, (scales, values, right) in enumerate(
        zip(spread.unbind(axis), x.unbind(axis), wanted.unbind(axis), strict=True)
    ):
        if close(scales, right.broadcast_to(scales.shape)):
            continue
        scale = float(scales.flatten()[0])
        text = scale_mistake(scale, values)
        raise Wrong(
            f"for {case}, index {index}: the scale is {scale:.6g}, max|x| / 127 of that slice is "
            f"{float(right.max()):.6g}{text and ': it is '}{text}"
        )


check_axis = CheckAxis()
