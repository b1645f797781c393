"""Round-to-nearest: every weight to the closest level of its group's grid. The baseline for every other method."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from labsupport.numerics.checks import check_bits, check_finite
from labsupport.quantization.affine import from_groups, to_groups
from labsupport.quantization.qweight import (
    QuantizedWeight,
    quantize_to_codes,
    resolve_group_size,
    scale_zero_from_range,
)


def rtn_quantize(
    weight: Float[Tensor, "out in"],
    bits: int = 4,
    group_size: int | None = 64,
    symmetric: bool = False,
    look: bool = True,
) -> QuantizedWeight:
    """Quantize a weight without data: no value is wrong by more than half a step of its own row and group.
    (Symmetric: half a step plus 2**-10 of the group's largest weight, see find_scale_zero.)

    group_size: consecutive columns of a row that share a scale; None or -1 means the whole row (per channel). The
        last group may be smaller.
    look: False where the weight is known to be finite: looking makes the host wait for a GPU.

    Raises:
        ValueError: bits outside 2..8; a weight that is not [out, in] or not finite.
    """
    check_bits(bits)
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be floating point of shape [out, in], got {weight.dtype} {list(weight.shape)}")
    weight = weight.detach().float()
    if look:
        check_finite(weight, "weight")
    in_features = weight.shape[1]
    group_size = resolve_group_size(group_size, in_features)

    groups = to_groups(weight, group_size)
    scale, zero_point = scale_zero_from_range(groups.amin(-1), groups.amax(-1), bits, symmetric)
    codes = quantize_to_codes(
        weight, from_groups(scale, group_size, in_features), from_groups(zero_point, group_size, in_features), bits
    )
    return QuantizedWeight.from_codes(codes, scale, zero_point, bits, group_size)
