"""The codes: int8, of the right shape, rounded to the nearest."""

from __future__ import annotations

from typing import Any

import torch

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.ex01_int8_symmetric.drawing import normal
from labsupport.checks.ex01_int8_symmetric.oracles import compare_codes
from labsupport.checks.ex01_int8_symmetric.reading import read_codes, read_quantized
from labsupport.checks.judging import unchanged
from labsupport.checks.plain import Plain, call


class CheckCodes(Check):
    name = "check_codes"
    needs = ("quantize_int8",)
    points = 2
    holds = "codes are int8 of x's shape, rounded to the nearest, from -127 to 127; x itself stays as it was"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b, c = normal(seed + 1, (400,), (17, 9), (3, 4, 5))
        return {
            "a vector whose largest value is positive": torch.cat([a, torch.tensor([5.0], dtype=torch.float32)]),
            "a random matrix": b * 100,
            "a 3-D tensor": c * 1e-2,
            "a vector whose largest value is negative": torch.cat(
                [a[:50].clamp(-2, 2), torch.tensor([-4.0], dtype=torch.float32)]
            ),
            "values halfway between two codes": torch.arange(-127, 127.5, 0.5, dtype=torch.float32) / 8,
            "a bfloat16 tensor": a[:100].bfloat16(),
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer["quantize_int8"], x)[0] for case, x in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, x in inputs.items():
            q, _ = read_quantized(values[case], case)
            q = read_codes(q, x, case)
            unchanged(values[case], case, "x")
            compare_codes(q, x.double(), x.double().abs().max() / 127, case)


check_codes = CheckCodes()
