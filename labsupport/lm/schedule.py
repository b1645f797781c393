"""The learning-rate schedule of every training here: a linear warm-up, then a straight line down to zero."""

from __future__ import annotations

from collections.abc import Iterable

from torch.optim import Optimizer


def rate_share(step: int, steps: int, warmup: int, decay_from: int | None = None) -> float:
    """Share of the peak rate in step 0 .. ``steps`` - 1: the lower of two straight lines.

    Args:
        warmup: the rate rises to its peak in this many steps (at least 1).
        decay_from: the step from which the falling line is counted; it would reach zero in step ``steps``. None:
            ``warmup``. 0: the line falls during the warm-up already, and the peak stays below 1.
    """
    start = warmup if decay_from is None else decay_from
    return min((step + 1) / warmup, (steps - step) / max(1, steps - start))


def set_rates(optimizers: Iterable[Optimizer], share: float) -> None:
    """Each parameter group gets ``share`` of the rate that it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group.setdefault("peak_lr", group["lr"])
