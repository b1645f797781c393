"""Zeros, constants, huge and tiny values."""

from __future__ import annotations

from typing import Any

import torch

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.ex01_int8_symmetric.calling import call_round_trip
from labsupport.checks.ex01_int8_symmetric.drawing import normal
from labsupport.checks.ex01_int8_symmetric.oracles import CODE_TOLERANCE, SCALE_TOLERANCE, true_scales
from labsupport.checks.ex01_int8_symmetric.reading import broadcast_scale, read_quantized, read_round_trip
from labsupport.checks.judging import Wrong, float_tensor
from labsupport.checks.plain import Plain

# float32's eps, the largest floor in good use under a scale (for tensors of zeros); real values have scales of 1e-5
LARGEST_FLOOR = 1.2e-7


class CheckEdgeCases(Check):
    name = "check_edge_cases"
    needs = ("quantize_int8", "dequantize_int8")
    points = 1
    holds = "zeros, constants, one element, huge and tiny values all come back finite and within half a step"

    def inputs(self, seed: int) -> dict[str, Any]:
        (a,) = normal(seed + 5, (64,))
        peaked = a / a.abs().max()  # its largest magnitude is 1
        some_zero = a.reshape(8, 8).clone()
        some_zero[2], some_zero[7] = 0, 0
        return {
            "a tensor of zeros": [torch.zeros(5, dtype=torch.float32), None],
            "a matrix with two rows of zeros, axis=0": [some_zero, 0],
            "a constant tensor": [torch.full((3, 3), 2.5, dtype=torch.float32), None],
            "a negative constant": [torch.full((7,), -0.75, dtype=torch.float32), None],
            "a single element": [torch.tensor([-1.3], dtype=torch.float32), None],
            "values up to 1e30": [peaked * 1e30, None],
            "values up to 1e-30": [peaked * 1e-30, None],
            "values up to 1e-4": [peaked * 1e-4, None],
            "rows from 1e-4 to 1, axis=0": [some_zero * torch.logspace(-4, 0, 8, dtype=torch.float32)[:, None], 0],
            "float16 values up to 1e-6": [(peaked * 1e-6).half(), None],
            "float16 values up to 60000": [(peaked * 6e4).half(), None],
            "denormal values up to 1e-40": [peaked * 1e-40, None],
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call_round_trip(answer, x, axis) for case, (x, axis) in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (x, axis) in inputs.items():
            restored = read_round_trip(values[case], x, case)
            _, scale = read_quantized(values[case]["quantized"], case)
            scale = float_tensor(scale, f"for {case}, scale")
            if not scale.isfinite().all() or not (scale > 0).all():
                bad = scale.flatten()[~(scale.isfinite() & (scale > 0)).flatten()][0]
                raise Wrong(
                    f"for {case} the scale is {bad:g}; "
                    "it must be positive and finite, or dividing by it gives inf and NaN"
                )
            if not restored.isfinite().all():
                raise Wrong(f"for {case} the round trip gives NaN or inf")
            wanted, spread = true_scales(x.double(), axis), broadcast_scale(scale, x, case)
            # A floor under the scale, or a number added to it (to survive zeros), makes steps of tiny values larger.
            steps = torch.minimum(torch.maximum(wanted, spread), wanted + LARGEST_FLOOR).broadcast_to(x.shape)
            too_large = (spread > steps * (1 + SCALE_TOLERANCE)) & (wanted > 0)
            if too_large.any():
                raise Wrong(
                    f"for {case}, the scale is {spread[too_large][0]:g}: a floor this high turns small values into "
                    f"zeros, max|x| / 127 is {wanted.broadcast_to(x.shape)[too_large][0]:.3g} there; the floor must be "
                    f"{LARGEST_FLOOR:g} or less"
                )
            allowed = torch.where(wanted > 0, (0.5 + CODE_TOLERANCE) * steps, 0.0)  # zeros come back exactly
            if case.startswith("denormal"):  # float32 has only 16 bits left there, and 1 / scale is inf
                allowed = torch.full_like(allowed, LARGEST_FLOOR)
            error = (restored - x.double()).abs()
            if not (error <= allowed).all():
                worst = int((error - allowed).argmax())
                raise Wrong(
                    f"for {case}, {x.flatten()[worst]:.6g} came back as {restored.flatten()[worst]:.6g}, "
                    f"more than half a step of {steps.flatten()[worst]:.3g} away"
                )


check_edge_cases = CheckEdgeCases()
