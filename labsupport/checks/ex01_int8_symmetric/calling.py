"""The student's two functions, one after the other."""

from __future__ import annotations

from torch import Tensor

from labsupport.checks.check import Answer
from labsupport.checks.plain import Plain, call


def call_round_trip(answer: Answer, x: Tensor, axis: int | None) -> Plain:
    outcome, result = call(answer["quantize_int8"], x, **({} if axis is None else {"axis": axis}))
    if not isinstance(result, tuple | list) or len(result) != 2:
        return {"quantized": outcome}
    return {"quantized": outcome, "restored": call(answer["dequantize_int8"], *result)[0]}
