"""What the student's functions returned, as tensors, or `Wrong`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from labsupport.checks.judging import Wrong, pair, returned
from labsupport.checks.plain import Plain, describe


def read_quantized(outcome: Mapping[str, Any], case: str) -> tuple[Plain, Plain]:
    return pair(returned(outcome, case), "quantize_int8", "(q, scale)")


def read_codes(q: Plain, x: Tensor, case: str) -> Tensor:
    if not isinstance(q, Tensor):
        raise Wrong(f"for {case}, q must be a tensor of int8; got {describe(q)}")
    if q.dtype != torch.int8:
        raise Wrong(f"for {case}, q must be of type torch.int8; got {describe(q)}")
    if q.shape != x.shape:
        raise Wrong(f"for {case}, q must have x's shape {list(x.shape)}; got {list(q.shape)}")
    return q.double()


def read_restored(value: Plain, x: Tensor, case: str) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        raise Wrong(f"for {case}, dequantize_int8 must return a tensor of float32; got {describe(value)}")
    if value.shape != x.shape:
        raise Wrong(f"for {case}, dequantize_int8 must return the shape of q, {list(x.shape)}; got {list(value.shape)}")
    return value.double()


def read_round_trip(values: Plain, x: Tensor, case: str) -> Tensor:
    read_quantized(values["quantized"], case)
    return read_restored(returned(values["restored"], case), x, case)


def broadcast_scale(scale: Tensor, x: Tensor, case: str) -> Tensor:
    try:
        return scale.broadcast_to(x.shape)
    except RuntimeError:
        raise Wrong(
            f"for {case} the scale has shape {list(scale.shape)}, which does not broadcast against x {list(x.shape)}; "
            "keep the reduced dimensions (keepdim=True)"
        ) from None
