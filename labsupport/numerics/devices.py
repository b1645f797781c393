"""Between the host and a device that computes on its own, such as a GPU: copies, and looks, that cost no waiting.

A GPU is given work and does it later. Each time the host asks for a value (``item``, ``bool``, ``tolist``) it waits
until all work before it is done, and the GPU then idles until the host has thought of more: at small sizes that is most
of the time. So numbers go there without waiting, and what must be known comes back in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def from_host(numbers: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.tensor(numbers, device=device)``, except that the host does not wait for the copy."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def to_host(values: Sequence[Tensor]) -> list[Any]:
    """``[value.tolist() for value in values]`` of tensors of one device, shape and dtype, waiting once for all."""
    return torch.stack([value.detach() for value in values]).tolist() if values else []
