"""What the student's function returned, as a weight, or `Wrong`."""

from __future__ import annotations

from torch import Tensor

from labsupport.checks.judging import Wrong, float_tensor
from labsupport.checks.plain import Plain, describe


def read_weight(value: Plain, weight: Tensor, case: str, hint: str = "") -> Tensor:
    """The returned weight in float64, or `Wrong`."""
    name = f"for {case}, the result"
    if isinstance(value, Tensor) and not value.is_floating_point():
        raise Wrong(
            f"{name} must be the dequantized weight, floats (q - zero_point) * scale, not codes; got {describe(value)}"
        )
    result = float_tensor(value, name)
    if result.shape != weight.shape:
        raise Wrong(f"{name} must have the weight's shape {list(weight.shape)}; got {list(result.shape)}")
    if not result.isfinite().all():
        raise Wrong(f"{name} contains NaN or inf{hint and ': '}{hint}")
    return result
