"""Exercise 1: symmetric int8 quantization.

With scale s = max|x| / 127 and codes q = round(x / s), every |x / s| is at most 127, so rounding is the only error:
|x - q s| <= s / 2. All bounds below follow from that; the slack beside them covers float32 rounding only
(2^-24 relative an operation, times 127 for a code). Ties may be rounded either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from labsupport.checks import Check, Exercise, Wrong
from labsupport.checks.judging import float_tensor, pair, returned, unchanged
from labsupport.checks.plain import Plain, call, describe

SCALE_TOLERANCE = 1e-5  # relative; float16 has 5e-4, so a scale computed in half precision shows
CODE_TOLERANCE = 1e-3  # of a step
LARGEST_FLOOR = 1e-5  # the largest floor under the scale (against zeros) in common use; real weights are well above

Answer = Mapping[str, Callable[..., Any]]
Inputs = Mapping[str, Any]


def _normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]


class CheckScale(Check):
    name = "check_scale"
    needs = ("quantize_int8",)
    points = 2
    holds = "the scale is max|x| / 127, one number for the whole tensor"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b, c, d, e = _normal(seed, (64,), (5, 7), (2, 3, 4), (40,), (33,))
        half = d.clamp(-2.5, 2.5).half()
        half[0] = 2.9  # 2.9 / 127 is about as far from a float16 number as can be
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
            _, scale = _quantized(values[case], case)
            scale = _one_number(scale, case)
            _compare_scale(float(scale), x.double(), case)


class CheckCodes(Check):
    name = "check_codes"
    needs = ("quantize_int8",)
    points = 2
    holds = "codes are int8 of x's shape, rounded to the nearest, from -127 to 127; x itself stays as it was"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b, c = _normal(seed + 1, (400,), (17, 9), (3, 4, 5))
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
            q, _ = _quantized(values[case], case)
            q = _codes(q, x, case)
            unchanged(values[case], case, "x")
            _compare_codes(q, x.double(), x.double().abs().max() / 127, case)


class CheckAxis(Check):
    name = "check_axis"
    needs = ("quantize_int8",)
    points = 2
    holds = "with axis=d every index of dimension d has a scale of its own, and scales broadcast against x"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b = _normal(seed + 2, (4, 6), (2, 3, 5))
        rows = (
            a * torch.tensor([0.01, 1.0, 30.0, 0.3], dtype=torch.float32)[:, None]
        )  # one outlier row must not cost the others their digits
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
            q, scale = _quantized(values[case], case)
            wanted = _scales_along(x.double(), axis)
            scale = float_tensor(scale, f"for {case}, scale")
            if scale.numel() == 1:
                raise Wrong(
                    f"for {case} there is a single scale; {wanted.numel()} are asked for, one a slice along the axis"
                )
            spread = _spread(scale, x, case)
            if scale.numel() != wanted.numel() or not _close(spread, wanted.broadcast_to(x.shape)):
                raise Wrong(
                    f"for {case} the scales are not max|x| / 127 of each slice along the axis: got shape "
                    f"{list(scale.shape)}, "
                    f"asked for {list(wanted.shape)}; `axis` is the dimension that keeps its own scales, reduce "
                    "over all others"
                )
            _compare_codes(_codes(q, x, case), x.double(), wanted, case)


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
            x = _restored(returned(values[case], case), q, case)
            unchanged(values[case], case, "q", "scale")
            if _close(x, q.double() * scale.double()):
                continue
            if _close(x, q.double() / scale.double()):
                raise Wrong(
                    f"for {case} you divide by the scale; the scale is the step between two codes, so x is q * scale"
                )
            raise Wrong(
                f"for {case} the result is not q * scale: q={q[0, 0]}, scale={scale.flatten()[0]:g} gave {x[0, 0]:.6g}"
            )


class CheckRoundTrip(Check):
    name = "check_round_trip"
    needs = ("quantize_int8", "dequantize_int8")
    points = 2
    holds = "what comes back from int8 is at most half a step away from what went in"

    def inputs(self, seed: int) -> dict[str, Any]:
        a, b, c, d = _normal(seed + 4, (1000,), (8, 16), (3, 4, 5), (256,))
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
        return {case: _round_trip(answer, x, axis) for case, (x, axis) in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (x, axis) in inputs.items():
            restored = _round_tripped(values[case], x, case)
            scale = _scales_along(x.double(), axis)
            steps = (restored - x.double()).abs() / scale
            worst = int(steps.argmax())
            if not steps.max() <= 0.5 + CODE_TOLERANCE:  # `not <=` so that NaN is caught
                raise Wrong(
                    f"for {case}, {x.flatten()[worst]:.6g} came back as {restored.flatten()[worst]:.6g}: "
                    f"{steps.flatten()[worst]:.3g} steps away, where rounding costs at most half a step"
                )


class CheckEdgeCases(Check):
    name = "check_edge_cases"
    needs = ("quantize_int8", "dequantize_int8")
    points = 1
    holds = "zeros, constants, one element, huge and tiny values all come back finite and within half a step"

    def inputs(self, seed: int) -> dict[str, Any]:
        (a,) = _normal(seed + 5, (64,))
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
            "float16 values up to 1e-6": [(peaked * 1e-6).half(), None],
            "float16 values up to 60000": [(peaked * 6e4).half(), None],
            "denormal values up to 1e-40": [peaked * 1e-40, None],
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: _round_trip(answer, x, axis) for case, (x, axis) in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (x, axis) in inputs.items():
            restored = _round_tripped(values[case], x, case)
            _, scale = _quantized(values[case]["quantized"], case)
            scale = float_tensor(scale, f"for {case}, scale")
            if not scale.isfinite().all() or not (scale > 0).all():
                bad = scale.flatten()[~(scale.isfinite() & (scale > 0)).flatten()][0]
                raise Wrong(
                    f"for {case} the scale is {bad:g}; it must be positive and finite, or dividing by it gives "
                    "inf and NaN"
                )
            if not restored.isfinite().all():
                raise Wrong(f"for {case} the round trip gives NaN or inf")
            wanted, spread = _scales_along(x.double(), axis), _spread(scale, x, case)
            # A floor under the scale (to survive zeros) makes the step of tiny values larger than max|x| / 127.
            steps = torch.maximum(wanted, spread.clamp(max=LARGEST_FLOOR)).broadcast_to(x.shape)
            too_large = (spread > steps * (1 + SCALE_TOLERANCE)) & (wanted > 0)
            if too_large.any():
                raise Wrong(
                    f"for {case}, the scale is {spread[too_large][0]:g}: so high a floor makes zeros of small values; "
                    f"let max|x| / 127 stand down to {LARGEST_FLOOR:g} or less"
                )
            allowed = torch.where(wanted > 0, (0.5 + CODE_TOLERANCE) * steps, 0.0)  # zeros come back exactly
            if case.startswith("denormal"):  # float32 has only 16 bits left there, and 1 / scale is inf
                allowed = torch.full_like(allowed, LARGEST_FLOOR)
            error = (restored - x.double()).abs()
            if not (error <= allowed).all():
                worst = int((error - allowed).argmax())
                raise Wrong(
                    f"for {case}, {x.flatten()[worst]:.6g} came back as {restored.flatten()[worst]:.6g}, more "
                    "than half a step "
                    f"of {steps.flatten()[worst]:.3g} away"
                )


# What the checks share: reading an answer's values -------------------------------------------------------------------


def _quantized(outcome: Mapping[str, Any], case: str) -> tuple[Plain, Plain]:
    return pair(returned(outcome, case), "quantize_int8", "(q, scale)")


def _one_number(scale: Plain, case: str) -> Tensor:
    value = float_tensor(scale, f"for {case}, scale")
    if value.dim() != 0:
        raise Wrong(f"for {case} without axis, scale must be a 0-d tensor or a float; got {describe(scale)}")
    return value


def _spread(scale: Tensor, x: Tensor, case: str) -> Tensor:
    try:
        return scale.broadcast_to(x.shape)
    except RuntimeError:
        raise Wrong(
            f"for {case} the scale has shape {list(scale.shape)}, which does not broadcast against x {list(x.shape)}; "
            f"keep the reduced dimensions (keepdim=True)"
        ) from None


def _codes(q: Plain, x: Tensor, case: str) -> Tensor:
    if not isinstance(q, Tensor):
        raise Wrong(f"for {case}, q must be a tensor of int8; got {describe(q)}")
    if q.dtype != torch.int8:
        raise Wrong(f"for {case}, q must be of type torch.int8; got {describe(q)}")
    if q.shape != x.shape:
        raise Wrong(f"for {case}, q must have x's shape {list(x.shape)}; got {list(q.shape)}")
    return q.double()


def _restored(value: Plain, x: Tensor, case: str) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        raise Wrong(f"for {case}, dequantize_int8 must return a tensor of float32; got {describe(value)}")
    if value.shape != x.shape:
        raise Wrong(f"for {case}, dequantize_int8 must return the shape of q, {list(x.shape)}; got {list(value.shape)}")
    return value.double()


def _round_trip(answer: Answer, x: Tensor, axis: int | None) -> Plain:
    outcome, result = call(answer["quantize_int8"], x, **({} if axis is None else {"axis": axis}))
    if not isinstance(result, tuple | list) or len(result) != 2:
        return {"quantized": outcome}
    return {"quantized": outcome, "restored": call(answer["dequantize_int8"], *result)[0]}


def _round_tripped(values: Plain, x: Tensor, case: str) -> Tensor:
    _quantized(values["quantized"], case)
    return _restored(returned(values["restored"], case), x, case)


# Oracles, in float64 --------------------------------------------------------------------------------------------------


def _scales_along(x: Tensor, axis: int | None) -> Tensor:
    others = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=True) if others else x.abs()
    return (largest if axis is not None else largest.reshape(())) / 127


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= SCALE_TOLERANCE * b.abs()).all())  # false for NaN


def _compare_scale(scale: float, x: Tensor, case: str) -> None:
    largest = float(x.abs().max())

    def is_(value: float, tolerance: float = SCALE_TOLERANCE) -> bool:
        return abs(scale - value) <= tolerance * abs(value)

    if is_(largest / 127):
        return
    span = float(x.max() - x.min())
    mistakes = {
        "the reciprocal of max|x| / 127; the scale is the step between two codes: x ≈ q * scale": 127 / largest,
        "max|x| / 128; the largest code is 127, so max|x| must be 127 steps": largest / 128,
        "max|x| / 255; codes run from -127 to 127, so max|x| must be 127 steps": largest / 255,
        "2 max|x| / 255; codes run from -127 to 127, so max|x| must be 127 steps": largest / 127.5,
        "(max - min) / 255, that of asymmetric quantization; here it is max|x| / 127": span / 255,
        "(max - min) / 254; symmetric codes put max|x| at 127, whatever the other end is": span / 254,
        "max(x) / 127; take the largest absolute value, or large negative values do not fit": float(x.max()) / 127,
        "max|x|; divide it by 127, the largest code": largest,
    }
    for text, value in mistakes.items():
        if is_(value):
            raise Wrong(f"for {case} the scale is {text}")
    if is_(largest / 127, tolerance=5e-3):
        raise Wrong(
            f"for {case} the scale is {scale:.7g}, where max|x| / 127 is {largest / 127:.7g}: not precise enough "
            "for float32; "
            f"convert x to float32 first and add nothing to the scale"
        )
    raise Wrong(f"for {case} the scale is {scale:.6g}; max|x| / 127 is {largest / 127:.6g}")


def _compare_codes(q: Tensor, x: Tensor, scale: Tensor, case: str) -> None:
    exact = x / scale
    off = (q - exact).abs()
    if off.max() > 200:
        raise Wrong(f"for {case} codes wrap around (128 becomes -128 as int8): clamp to -127..127 before the cast")
    if off.max() <= 0.5 + CODE_TOLERANCE:  # -128 is at least a step away from every value
        return
    if (q - (exact * 128 / 127).clamp(-128, 127)).abs().max() <= 0.5 + CODE_TOLERANCE:
        raise Wrong(
            f"for {case} codes count steps of max|x| / 128; symmetric codes run from -127 to 127, -128 is not used"
        )
    if ((q - exact.trunc()).abs() <= CODE_TOLERANCE).logical_or((exact - exact.round()).abs() <= CODE_TOLERANCE).all():
        raise Wrong(f"for {case} codes are cut off toward zero: casting to int8 truncates, so round first")
    if ((q - exact.floor()).abs() <= CODE_TOLERANCE).logical_or((exact - exact.round()).abs() <= CODE_TOLERANCE).all():
        raise Wrong(f"for {case} codes are rounded down; round to the nearest")
    worst = int(off.argmax())
    raise Wrong(
        f"for {case}, x = {x.flatten()[worst]:.6g} is {exact.flatten()[worst]:.2f} steps of max|x| / 127; "
        f"its code is {int(q.flatten()[worst])}, not the nearest one"
    )


check_scale, check_codes, check_axis = CheckScale(), CheckCodes(), CheckAxis()
check_dequantize, check_round_trip, check_edge_cases = CheckDequantize(), CheckRoundTrip(), CheckEdgeCases()

EXERCISE = Exercise(
    name="ex01_int8_symmetric",
    checks=(check_scale, check_codes, check_axis, check_dequantize, check_round_trip, check_edge_cases),
)
