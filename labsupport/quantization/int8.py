"""Symmetric int8 as the W8A8 layers use it: one scale per row of the weight, one per token of the activations."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from labsupport.numerics.checks import check_finite
from labsupport.quantization.affine import qparams_from_range, value_range
from labsupport.quantization.fast.int8 import saturation_free_limit
from labsupport.quantization.fast.probes import has_numba


def quantize_weight_int8(
    weight: Float[Tensor, "out in"], saturation_free: bool = True, look: bool = True
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, " out"]]:
    """Symmetric int8 with one scale per row: weight = codes * scale[:, None], to within half a step.

    look: False where the weight is known to be finite: looking makes the host wait for a GPU.
    saturation_free: a slightly larger scale where it is needed, so that AVX2 multiplies in one pass (fast.int8.Fbgemm).

    Raises:
        ValueError: a weight that is not floating point, or not [out, in].
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be floating point of shape [out, in], got {weight.dtype} {list(weight.shape)}")
    weight = weight.detach().float()
    if look:
        check_finite(weight)
    scale = qparams_from_range(*value_range(weight, axis=0), bits=8, symmetric=True, axis=0).scale
    if saturation_free:
        scale = torch.maximum(scale, saturation_free_limit(weight))
    return torch.round(weight / scale).clamp_(-127, 127).to(torch.int8), scale.squeeze(1)


def quantize_rows(x: Float[Tensor, "n in"]) -> tuple[Float[Tensor, "n in"], Float[Tensor, "n 1"]]:
    """Symmetric int8 with one scale per row: whole numbers within ±127 (as float32), and the scales."""
    steps, scale = in_steps(x.float())
    return steps.round_(), scale


def in_steps(x: Float[Tensor, "n in"]) -> tuple[Float[Tensor, "n in"], Float[Tensor, "n 1"]]:
    """The same before rounding, which the int8 kernels do anyway: at batch 1 every operator counts."""
    if x.device.type == "cpu" and has_numba():
        from labsupport.quantization.fast.numba_int8 import rows_in_steps

        return rows_in_steps(x)
    scale = x.abs().amax(1, keepdim=True).mul_(1 / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return x / scale, scale
