"""How good a student is on data it has not seen, by itself and compared with its teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from labsupport.distillation.losses import IGNORE_INDEX, at_least_float32, distribution_divergence
from labsupport.distillation.objective import model_logits
from labsupport.distillation.processes import sum_over_processes


@torch.no_grad()
def evaluate(
    student: nn.Module,
    teacher: nn.Module | None,
    data: tuple[Tensor, Tensor],
    rows: Int64[Tensor, " rows"],
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Means over all positions of ``data`` that count, in all processes. ``rows``: what this process computes of it.

    "loss" (cross-entropy with the labels, in nats) and "accuracy"; with a teacher also "divergence", KL(teacher ||
    student) at temperature 1, and "agreement", the share of positions where both choose the same class.
    """
    names = ["loss", "accuracy"] if teacher is None else ["loss", "accuracy", "divergence", "agreement"]
    was_training = student.training
    student.eval()
    totals = torch.zeros(1 + len(names), dtype=torch.float64)  # the first: how many positions count
    for batch in rows.split(batch_size):
        inputs, labels = data[0][batch].to(device), data[1][batch].to(device)
        counts = labels != IGNORE_INDEX
        logits, labels = at_least_float32(model_logits(student(inputs))[counts]), labels[counts]
        choice = logits.argmax(-1)
        sums = [counts.sum(), F.cross_entropy(logits, labels, reduction="sum"), (choice == labels).sum()]
        if teacher is not None:
            teacher_logits = at_least_float32(model_logits(teacher(inputs))[counts])
            sums += [distribution_divergence(logits, teacher_logits).sum(), (choice == teacher_logits.argmax(-1)).sum()]
        totals += torch.stack([each.double().cpu() for each in sums])
    student.train(was_training)
    count, *found = sum_over_processes(totals, device).tolist()
    return {name: value / max(1.0, count) for name, value in zip(names, found, strict=True)}
