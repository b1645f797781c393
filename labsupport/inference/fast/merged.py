"""Linear layers with the same input as one: q, k and v, gate and up. One matmul where there were three or two.

The rows of a weight are independent of each other, quantized or not, so the merged layer computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labsupport.quantization import DynamicQuantizedLinear, Int4WeightLinear, Int8WeightLinear, QuantizedWeight

_MOST_PACKED_ROWS = 32


class SideBySide(nn.Module):
    """Layers that cannot be merged, one after the other."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


class PackedLinear(nn.Module):
    """A float32 weight, and a copy of it in oneDNN's layout: up to a third faster for 2 to 16 rows of x.

    PyTorch's compiler uses the same two operators for models with frozen weights. oneDNN compiles a kernel for each
    number of rows and keeps it; prompt chunks come in many sizes and gain nothing, so they are multiplied as usual.
    """

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight, self._bias = weight.detach(), bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, 16)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
        return on_cpu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

    def forward(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        if len(x) > _MOST_PACKED_ROWS:
            return F.linear(x, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def merge(linears: Sequence[nn.Module], pack: bool = False) -> nn.Module:
    """One layer whose output is that of ``linears`` side by side. ``pack`` float32 weights (a copy of them)."""
    first = linears[0]
    biases = [getattr(linear, "bias", None) for linear in linears]
    mixed = any(type(linear) is not type(first) for linear in linears)
    present = [each.detach() for each in biases if each is not None]
    if mixed or len(present) not in (0, len(linears)):
        return SideBySide(linears)
    bias = torch.cat(present) if present else None
    if type(first) is nn.Linear:
        return _merge_float(linears, bias, pack)  # type: ignore[arg-type]
    if len(linears) == 1:
        return first
    if type(first) in (DynamicQuantizedLinear, Int8WeightLinear):
        weight, scale = (
            torch.cat([linear.get_buffer(name) for linear in linears]) for name in ("weight", "weight_scale")
        )
        return type(first)(weight, scale, bias)  # type: ignore[arg-type]
    if type(first) is Int4WeightLinear:
        return _merge_int4([linear.quantized_weight() for linear in linears], bias) or SideBySide(linears)  # type: ignore[operator]
    return SideBySide(linears)


def _merge_float(linears: Sequence[nn.Linear], bias: Tensor | None, pack: bool) -> nn.Module:
    weights = [linear.weight.detach() for linear in linears]
    weight = weights[0]
    if len(linears) > 1:
        weight = torch.cat(weights)
        rows = weight.split([len(each) for each in weights])
        for linear, own in zip(linears, rows, strict=True):
            linear.weight.data = own  # the same numbers: held once, and seen by the model and the merged layer
    if pack and PackedLinear.supports(weight):
        return PackedLinear(weight, bias)
    with torch.device("meta"):
        merged = nn.Linear(weight.shape[1], len(weight), bias=False)
    merged.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        merged.bias = nn.Parameter(bias, requires_grad=False)
    return merged


def _merge_int4(weights: Sequence[QuantizedWeight], bias: Tensor | None) -> nn.Module | None:
    """None where inputs are scaled or sorted differently, or group sizes differ."""
    first = weights[0]
    for other in weights[1:]:
        if other.group_size != first.group_size or not (
            _same(other.group_index, first.group_index) and _same(other.input_scale, first.input_scale)
        ):
            return None
    codes, scale, zero_point = (
        torch.cat(parts)
        for parts in zip(*((each.codes(), each.scale, each.zero_point) for each in weights), strict=True)
    )
    together = QuantizedWeight.from_codes(
        codes, scale, zero_point, 4, first.group_size, first.group_index, first.input_scale
    )
    return Int4WeightLinear(together, bias)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
