"""The returned mask, or `Wrong`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.judging import Wrong, returned, unchanged
from labsupport.checks.plain import describe


def read_mask(outcome: Any, weight: Tensor, case: str) -> Tensor:
    mask = returned(outcome, case, "if k is 0 no weight goes, if it is n all do" if "=0" in case else "")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise Wrong(
            f"for {case} magnitude_mask must return a bool tensor, True where a weight stays; got {describe(mask)}"
        )
    if mask.shape != weight.shape:
        raise Wrong(f"for {case} the mask must have the weight's shape {list(weight.shape)}; got {list(mask.shape)}")
    unchanged(outcome, case, "weight")
    return mask
