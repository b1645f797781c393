"""Codes times scale."""

from __future__ import annotations

from typing import Any

import torch

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.ex01_int8_symmetric.oracles import close
from labsupport.checks.ex01_int8_symmetric.reading import read_restored
from labsupport.checks.judging import Wrong, returned, unchanged
from labsupport.checks.plain import Plain, call


class CheckDequantize(Check):
    name = "check_dequantize"
    needs = ("dequantize_int8",)
    points = 1
    holds = "codes times scale, in float32, for one scale or many"

    def inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed + 3)
        q = torch.randint(-127, 128, (4, 6), generator=generator, dtype=torch.int8)
        return {
            "one scale": [q, torch.tensor(0.31, dtype=torch.float32)],
            "one scale a row": [q, torch.tensor([[0.5], [0.01], [2.0], [7.3]], dtype=torch.float32)],
            "one scale a column": [q, torch.tensor([[0.5, 0.01, 2.0, 7.3, 1.0, 0.2]], dtype=torch.float32)],
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer["dequantize_int8"], q, scale)[0] for case, (q, scale) in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (q, scale) in inputs.items():
            x = read_restored(returned(values[case], case), q, case)
            unchanged(values[case], case, "q", "scale")
            if close(x, q.double() * scale.double()):
                continue
            if close(x, q.double() / scale.double()):
                raise Wrong(
                    f"for {case} you divide by the scale; the scale is the step between two codes, so x is q * scale"
                )
            raise Wrong(
                f"for {case} the result is not q * scale: q={q[0, 0]}, scale={scale.flatten()[0]:g} gave {x[0, 0]:.6g}"
            )


check_dequantize = CheckDequantize()
