"""What every algorithm requires of its numbers before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.numerics.devices import to_host

MIN_BITS, MAX_BITS = 2, 8


def check_bits(bits: int) -> None:
    """ValueError unless 2 <= bits <= 8: codes are stored in 8-bit integers, in which more bits would wrap silently."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be an integer from {MIN_BITS} to {MAX_BITS}, got {bits!r}")


def check_finite(x: Float[Tensor, "*shape"], name: str = "x") -> None:
    """ValueError that counts the NaN and infinite values of x, if there are any."""
    if torch.isfinite(x).all():
        return
    nans, infs = int(torch.isnan(x).sum()), int(torch.isinf(x).sum())
    raise ValueError(f"{name} must be finite, got {nans} NaN and {infs} infinite among {x.numel()} values")


def check_all_finite(tensors: Sequence[tuple[str, Tensor]]) -> None:
    """`check_finite` of several tensors of one device, each with its name; the host waits once."""
    finite = to_host([torch.isfinite(tensor).all() for _, tensor in tensors])
    for (name, tensor), good in zip(tensors, finite, strict=True):
        if not good:
            check_finite(tensor, name)
