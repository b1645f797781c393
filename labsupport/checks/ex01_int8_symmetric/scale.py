"""The scale of a whole tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.ex01_int8_symmetric.drawing import normal
from labsupport.checks.ex01_int8_symmetric.oracles import SCALE_TOLERANCE, scale_mistake
from labsupport.checks.ex01_int8_symmetric.reading import read_quantized
from labsupport.checks.judging import Wrong, float_tensor
from labsupport.checks.plain import Plain, call, describe


class CheckScale(Check):
    name = "check_scale"
    needs = ("quantize_int8",)
    points = 2
    holds = "the scale is max|x| / 127, one number for the whole tensor"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b, c, d, e = normal(seed, (64,), (5, 7), (2, 3, 4), (40,), (33,))
        half = d.clamp(-2.5, 2.5).half()
        half[0] = 2.9  # 2.9 / 127 lies about halfway between two float16 numbers
        return {
            "a random vector": a * 3,
            "a random matrix": b,
            "a 3-D tensor": c * 10,
            "values that are mostly positive, with -9.3 among them": torch.cat(
                [e.abs(), torch.tensor([-9.3], dtype=torch.float32)]
            ),
            "negative values only": -a.abs() - 1,
            "a float16 tensor": half,
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer["quantize_int8"], x)[0] for case, x in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, x in inputs.items():
            _, scale = read_quantized(values[case], case)
            scale = _one_number(scale, case)
            _compare_scale(float(scale), x.double(), case)


def _one_number(scale: Plain, case: str) -> Tensor:
    value = float_tensor(scale, f"for {case}, scale")
    if value.dim() != 0:
        raise Wrong(f"for {case} without axis, scale must be a 0-d tensor or a float; got {describe(scale)}")
    return value


def _compare_scale(scale: float, x: Tensor, case: str) -> None:
    largest = float(x.abs().max())

    def is_(value: float, tolerance: float = SCALE_TOLERANCE) -> bool:
        return abs(scale - value) <= tolerance * abs(value)

    if is_(largest / 127):
        return
    if text := scale_mistake(scale, x):
        raise Wrong(f"for {case} the scale is {text}")
    if is_(largest / 127, tolerance=5e-3):
        raise Wrong(
            f"for {case} the scale is {scale:.7g}, where max|x| / 127 is {largest / 127:.7g}: "
            "not precise enough for float32; convert x to float32 first and add nothing to the scale"
        )
    raise Wrong(f"for {case} the scale is {scale:.6g}; max|x| / 127 is {largest / 127:.6g}")


check_scale = CheckScale()
