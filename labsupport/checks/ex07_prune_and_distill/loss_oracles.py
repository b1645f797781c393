"""The right loss, and what known mistakes come to. In float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labsupport.checks.ex07_prune_and_distill.drawing import IGNORE


def right_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0, alpha: float = 0.5
) -> Tensor:
    """The loss in float64."""
    counts = labels != IGNORE
    hard = F.cross_entropy(student[counts], labels[counts])
    soft = _kl(teacher[counts] / temperature, student[counts] / temperature).mean()
    return (1 - alpha) * hard + alpha * temperature**2 * soft


def known_mistakes(student: Tensor, teacher: Tensor, labels: Tensor, t: float, alpha: float) -> list[tuple[str, float]]:
    """The values of known mistakes: in the hard term if alpha is 0, in the soft term if it is 1."""
    counts = labels != IGNORE
    s, p, y = student[counts], teacher[counts], labels[counts]
    hard, softs = F.cross_entropy(s, y), _kl(p / t, s / t)
    soft, size, classes = softs.mean(), counts.numel(), student.shape[-1]
    batch = len(student)
    found: list[tuple[str, Any]] = []
    swapped = "alpha weighs the soft term (the teacher), 1 - alpha the labels; yours has them swapped"
    if alpha == 0:
        everywhere = [_kl(teacher / t, student / t).flatten(), _kl(student / t, teacher / t).flatten(), softs]
        for each in everywhere:
            for value in (each.mean(), each.sum(), each.sum() / batch):
                found += [(swapped, value * factor) for factor in (1, t, t**2)]
        found.append(
            ("the labels are compared with student_logits as they are: no temperature there", F.cross_entropy(s / t, y))
        )
        found.append(("take the mean over the positions that count, not the sum", hard * len(y)))
        found.append(("divide by the positions that count, not by all", hard * len(y) / size))
        found.append(("labels are compared with the student, not with the teacher", F.cross_entropy(p, y)))
        return [(text, float(value)) for text, value in found]
    if alpha < 1:
        weights = [("T**2 is missing in the soft term", 1 - alpha, alpha), (swapped, alpha, (1 - alpha) * t**2)]
        weights += [(f"{swapped}, and T**2 is missing", alpha, 1 - alpha)]
        weights += [("both terms must be weighed: 1 - alpha and alpha", 1.0, alpha * t**2)]
        return [(text, float(h * hard + w * soft)) for text, h, w in weights]

    def softened(teachers: float, students: float) -> Tensor:
        return _kl(p / teachers, s / students).mean()

    cubed = t**2
    found += [(swapped, value) for value in (hard, hard * len(y))]
    if t != 1:
        found.append(("multiply the soft term by T**2: its gradients shrink with 1/T**2", soft))
        found.append(("multiply the soft term by T**2, not by T", soft * t))
        for factor in (1, cubed):
            found.append(("the teacher's logits must be softened by the temperature too", factor * softened(1, t)))
            found.append(("the student's logits must be softened by the temperature too", factor * softened(t, 1)))
            found.append(("divide both logits by the temperature before the softmax", factor * softened(1, 1)))
            found.append(
                ("divide the logits by the temperature; yours are multiplied", factor * softened(1 / t, 1 / t))
            )
    reverse = _kl(s / t, p / t)
    entropy = -((p / t).softmax(-1) * (p / t).log_softmax(-1)).sum(-1).mean()
    unlogged = ((p / t).softmax(-1) * ((p / t).log_softmax(-1) - (s / t).softmax(-1))).sum(-1).mean()
    over_batch = _kl(p / t, s / t, dim=0)
    direction = (
        "that is KL(student || teacher): the expectation is the teacher's, F.kl_div(student's log-probabilities, "
        "teacher's probabilities)"
    )
    for factor in (cubed, 1):
        found += [(direction, factor * value) for value in (reverse.mean(), reverse.sum())]
        found.append(
            ("F.kl_div's first argument must be log-probabilities: log_softmax, not softmax", factor * unlogged)
        )
        found.append(
            (
                "that is the cross-entropy with the teacher, KL subtracts the teacher's entropy",
                factor * (soft + entropy),
            )
        )
        found.append(
            (
                "the sum over classes must not be divided by the classes too: reduction='mean' does",
                factor * soft / classes,
            )
        )
        found.append(
            (
                "that compares the student with the teacher's best class alone; KL takes the whole distribution",
                factor * F.cross_entropy(s / t, p.argmax(-1)),
            )
        )
        found.append(
            ("that is the mean square of the difference of logits, not a KL", factor * F.mse_loss(s / t, p / t))
        )
        found.append(
            (
                "that is the mean square of the difference of probabilities, not a KL",
                factor * F.mse_loss((s / t).softmax(-1), (p / t).softmax(-1)),
            )
        )
        found.append(("the sign is wrong: a KL is never negative", -factor * soft))
        if student.dim() == 2:
            found.append(("take the mean over the batch, not the sum", factor * softs.sum()))
            over = "softmax must be over the classes, the last dimension, not over the batch"
            found += [(over, factor * over_batch.sum() / n) for n in (batch, classes, 1)]
            continue
        every = _kl(teacher / t, student / t)
        time = _kl(teacher / t, student / t, dim=1)
        grows = (
            "divide the sum by batch * time: reduction='batchmean' divides by the batch alone, and grows with length"
        )
        found += [(grows, factor * each.sum() / batch) for each in (softs, every)]
        over = "softmax must be over the vocabulary, the last dimension, not over time"
        found += [(over, factor * time.sum() / n) for n in (batch, time.numel(), size, batch * classes)]
        if not counts.all():
            found.append(("padding (labels of -100) must not count in the soft term either", factor * every.mean()))
            found.append(
                ("divide by the positions that count, not by all of batch * time", factor * softs.sum() / size)
            )
            rows = torch.stack([each[kept].mean() for each, kept in zip(every, counts, strict=True)])
            found.append(("every token counts alike: no mean of each sequence first", factor * rows.mean()))
    return [(text, float(value)) for text, value in found]


def _kl(p: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """KL of logits, summed over ``dim``."""
    return (p.softmax(dim) * (p.log_softmax(dim) - q.log_softmax(dim))).sum(dim)
