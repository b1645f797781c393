"""The output error, and what others reach: round-to-nearest, and GPTQ on the coarsest grid. In float64."""

from __future__ import annotations

import torch
from torch import Tensor


def output_error(weight: Tensor, result: Tensor, covariance: Tensor) -> float:
    """E ||x dWᵀ||² for inputs x of that covariance."""
    delta = result - weight
    return float(((delta @ covariance) * delta).sum())


def round_to_nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """On the finer, asymmetric grid."""
    groups = []
    for w in weight.split(group_size, 1):
        low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        zero_point = (-low / scale).round()
        groups.append((((w / scale).round() + zero_point).clamp(0, 2**bits - 1) - zero_point) * scale)
    return torch.cat(groups, 1)


def coarsest_gptq(weight: Tensor, inputs: Tensor, bits: int, group_size: int) -> Tensor:
    """GPTQ on codes ±(2^(bits-1) - 1) with 5 % damping: of all right variants, the one with the largest error."""
    weight, largest_code = weight.clone(), 2 ** (bits - 1) - 1
    hessian = inputs.double().T @ inputs.double()
    hessian += 0.05 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    for j in range(weight.shape[1]):
        if j % group_size == 0:
            scale = weight[:, j : j + group_size].abs().amax(1) / largest_code
        rounded = (weight[:, j] / scale).round().clamp(-largest_code, largest_code) * scale
        error = (weight[:, j] - rounded) / factor[j, j]
        weight[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
        weight[:, j] = rounded
    return weight
