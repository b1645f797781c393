"""The right scales and codes, in float64."""

from __future__ import annotations

from torch import Tensor

from labsupport.checks.judging import Wrong

SCALE_TOLERANCE = 1e-5  # relative; float16 has 5e-4, so a scale computed in half precision is noticed
CODE_TOLERANCE = 1e-3  # of a step


def true_scales(x: Tensor, axis: int | None) -> Tensor:
    others = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=True) if others else x.abs()
    return (largest if axis is not None else largest.reshape(())) / 127


def close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= SCALE_TOLERANCE * b.abs()).all())  # false for NaN


def scale_mistake(scale: float, x: Tensor) -> str:
    """Which usual mistake makes this the scale of ``x``, or "". ``x``: all values that share the scale."""
    largest, span = float(x.abs().max()), float(x.max() - x.min())
    mistakes = {
        "the reciprocal of max|x| / 127; the scale is the step between two codes: x ≈ q * scale": 127 / largest,
        "max|x| / 128; the largest code is 127, so max|x| must be 127 steps": largest / 128,
        "max|x| / 255; codes run from -127 to 127, so max|x| must be 127 steps": largest / 255,
        "2 max|x| / 255; codes run from -127 to 127, so max|x| must be 127 steps": largest / 127.5,
        "max|x| / 256; codes run from -127 to 127, so max|x| must be 127 steps": largest / 256,
        "max|x| / 7, that of 4 bits; the largest code of 8 bits is 127": largest / 7,
        "(max - min) / 255, that of asymmetric quantization; here it is max|x| / 127": span / 255,
        "(max - min) / 254; symmetric codes put max|x| at 127, however far the other end is": span / 254,
        "max(x) / 127; take the largest absolute value, or large negative values do not fit": float(x.max()) / 127,
        "|min(x)| / 127; take the largest absolute value": abs(float(x.min())) / 127,
        "that of the mean of |x|; take the largest": float(x.abs().mean()) / 127,
        "that of the standard deviation of x; take the largest |x|": float(x.std()) / 127 if x.numel() > 1 else 0.0,
        "max|x|; divide it by 127, the largest code": largest,
    }
    return next((text for text, value in mistakes.items() if abs(scale - value) <= SCALE_TOLERANCE * abs(value)), "")


def compare_codes(q: Tensor, x: Tensor, scale: Tensor, case: str) -> None:
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
        raise Wrong(f"for {case} codes are truncated toward zero: a cast to int8 does not round, so round first")
    if ((q - exact.floor()).abs() <= CODE_TOLERANCE).logical_or((exact - exact.round()).abs() <= CODE_TOLERANCE).all():
        raise Wrong(f"for {case} codes are rounded down; round to the nearest")
    worst = int(off.argmax())
    raise Wrong(
        f"for {case}, x = {x.flatten()[worst]:.6g} is {exact.flatten()[worst]:.2f} steps of max|x| / 127; "
        f"its code is {int(q.flatten()[worst])}, not the nearest one"
    )
