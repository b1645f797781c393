"""Quantized and dequantized: at most half a step is lost."""

from __future__ import annotations

from typing import Any

import torch

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.ex01_int8_symmetric.calling import call_round_trip
from labsupport.checks.ex01_int8_symmetric.drawing import normal
from labsupport.checks.ex01_int8_symmetric.oracles import CODE_TOLERANCE, true_scales
from labsupport.checks.ex01_int8_symmetric.reading import read_round_trip
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain


class CheckRoundTrip(Check):
    name = "check_round_trip"
    needs = ("quantize_int8", "dequantize_int8")
    points = 2
    holds = "what comes back from int8 is at most half a step away from what went in"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b, c, d = normal(seed + 4, (1000,), (8, 16), (3, 4, 5), (256,))
        b = b * torch.logspace(-2, 4, 8, dtype=torch.float32)[:, None]
        return {
            "a random vector": [a, None],
            "uniform values": [torch.linspace(-5, 3, 500, dtype=torch.float32), None],
            "a vector with one outlier of 300": [torch.cat([d, torch.tensor([300.0], dtype=torch.float32)]), None],
            "a matrix with rows of very different size, axis=0": [b, 0],
            "a 3-D tensor, axis=1": [c, 1],
            "a float16 tensor": [d.half(), None],
            "float16 rows, axis=0": [c[0].half(), 0],
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call_round_trip(answer, x, axis) for case, (x, axis) in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (x, axis) in inputs.items():
            restored = read_round_trip(values[case], x, case)
            scale = true_scales(x.double(), axis)
            steps = (restored - x.double()).abs() / scale
            worst = int(steps.argmax())
            if not steps.max() <= 0.5 + CODE_TOLERANCE:  # `not <=` so that NaN is caught
                raise Wrong(
                    f"for {case}, {x.flatten()[worst]:.6g} came back as {restored.flatten()[worst]:.6g}: "
                    f"{steps.flatten()[worst]:.3g} steps away, where rounding costs at most half a step"
                )


check_round_trip = CheckRoundTrip()
