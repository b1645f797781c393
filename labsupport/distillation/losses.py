"""What a student learns from its teacher: output distributions, inner features, or both.

Every loss here is a mean over the positions that count: it does not grow with the length of a sequence, and padding
changes nothing. The same code serves classifiers ([batch, classes]) and language models ([batch, time, vocab]).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
Reduction = Literal["mean", "sum"]
IGNORE_INDEX = -100  # the label of positions that do not count, as in torch.nn.functional.cross_entropy


def distillation_loss(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    labels: Int64[Tensor, "*batch"] | None,
    temperature: float = 2.0,
    alpha: float = 0.5,
    *,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """(1 - alpha) · cross_entropy(student, labels) + alpha · T² · D(teacher, student at temperature T), in nats.

    Hinton et al. 2015 (arXiv 1503.02531), section 2: gradients of the soft term shrink as 1/T², so it is multiplied by
    T², and the two terms keep their shares when T changes. ``alpha`` weighs the soft term.

    labels: [batch], or [batch, time] where ``labels[b, t]`` belongs to ``logits[b, t]``: a language model's labels are
        its tokens shifted by one (`next_token_pairs`). Positions labelled ``ignore_index`` count in neither term. None
        (no labels are known) requires ``alpha=1``; every position counts then.
    divergence: "forward_kl" KL(teacher || student): cover everything the teacher considers possible;
        "reverse_kl" KL(student || teacher): seek its likely answers (MiniLLM, Gu et al. 2023, arXiv 2306.08543, eq. 1);
        "jensen_shannon": between them (GKD, Agarwal et al. 2023, arXiv 2306.13649, section 2), with ``beta`` the
        teacher's share of the mixture.
    reduction: "mean" over the positions that count (0 if there are none), or their "sum".

    Raises:
        ValueError: shapes do not fit, labels are not int64 class ids, or an option is outside its range.
    """
    _check_logits(student_logits, teacher_logits)
    check_range("temperature", temperature, 0 < temperature < math.inf, "positive and finite")
    check_range("alpha", alpha, 0 <= alpha <= 1, "between 0 and 1")
    _check_option("reduction", reduction, Reduction)
    student_logits, teacher_logits = at_least_float32(student_logits), at_least_float32(teacher_logits).detach()
    if labels is None:
        check_range("alpha", alpha, alpha == 1, "1 where labels is None")
        student, teacher = student_logits.flatten(0, -2), teacher_logits.flatten(0, -2)
    else:
        _check_labels(labels, student_logits, ignore_index)
        counts = labels != ignore_index
        student, teacher, labels = student_logits[counts], teacher_logits[counts], labels[counts]  # [positions, ...]

    total = student[:0].sum()  # 0, but a function of the student even if no position counts
    if alpha < 1 and labels is not None:
        total = total + (1 - alpha) * F.cross_entropy(student, labels, reduction="sum")
    if alpha > 0:
        soft = distribution_divergence(student / temperature, teacher / temperature, divergence, beta)
        total = total + alpha * temperature**2 * soft.sum()
    return total / max(1, len(student)) if reduction == "mean" else total


def distribution_divergence(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
) -> Float[Tensor, "*batch"]:
    """How far apart the two distributions of each position are, in nats: 0 if they are equal, otherwise positive.

    With P the teacher's, Q the student's and M = beta P + (1 - beta) Q, Jensen-Shannon is
    beta KL(P || M) + (1 - beta) KL(Q || M): never more than the entropy of (beta, 1 - beta), log 2 at 0.5.
    Classes with a logit of -inf on both sides add nothing.
    """
    _check_option("divergence", divergence, Divergence)
    p, q = _log_softmax(teacher_logits), _log_softmax(student_logits)
    if divergence == "forward_kl":
        return _kl(p, q)
    if divergence == "reverse_kl":
        return _kl(q, p)
    check_range("beta", beta, 0 < beta < 1, "between 0 and 1, both excluded (the limits are the two KLs)")
    mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)


class FeatureLoss(nn.Module):
    """Mean squared distance from the teacher's features to a projection of the student's (FitNets, Romero et al. 2014,
    arXiv 1412.6550, eq. 3).

    The projection is made once and trained with the student: give this module's parameters to the optimizer. A new one
    for each call would teach the student something else every time. The teacher's features are standardized at each
    position (mean 0, variance 1), so that a loss of 1 means that nothing has been learned, whatever their scale.
    """

    def __init__(self, student_size: int, teacher_size: int) -> None:
        super().__init__()
        for name, size in (("student_size", student_size), ("teacher_size", teacher_size)):
            check_range(name, size, size >= 1, "at least 1")
        self.projection = nn.Linear(student_size, teacher_size)

    def forward(
        self,
        student_features: Float[Tensor, "*batch student"],
        teacher_features: Float[Tensor, "*batch teacher"],
        mask: Bool[Tensor, "*batch"] | None = None,
        reduction: Reduction = "mean",
    ) -> Float[Tensor, ""]:
        """mask: True at the positions that count (default: all)."""
        sizes = (self.projection.in_features, self.projection.out_features)
        if (student_features.shape[-1], teacher_features.shape[-1]) != sizes:
            given = (student_features.shape[-1], teacher_features.shape[-1])
            raise ValueError(f"student_features and teacher_features must have sizes {sizes}; got {given}")
        if student_features.shape[:-1] != teacher_features.shape[:-1]:
            shapes = f"{list(student_features.shape)} and {list(teacher_features.shape)}"
            raise ValueError(
                f"student_features and teacher_features must agree except in the last dimension; got {shapes}"
            )
        _check_option("reduction", reduction, Reduction)
        if mask is None:
            mask = torch.ones(student_features.shape[:-1], dtype=torch.bool, device=student_features.device)
        elif mask.dtype != torch.bool or mask.shape != student_features.shape[:-1]:
            wanted = list(student_features.shape[:-1])
            raise ValueError(f"mask must be bool of shape {wanted}; got {mask.dtype} {list(mask.shape)}")
        target = at_least_float32(teacher_features[mask]).detach()
        target = F.layer_norm(target, target.shape[-1:])
        error = (self.projection(student_features[mask]) - target).square().mean(-1)  # [positions]
        return error.sum() / max(1, len(error)) if reduction == "mean" else error.sum()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of log-probabilities over the last dimension."""
    return (p.exp() * (p - q)).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    """With a floor in place of -inf, because 0 · (floor - floor) is 0, while 0 · (-inf + inf) would be NaN."""
    return logits.log_softmax(-1).clamp(min=-1e30)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if not logits.is_floating_point():
            raise ValueError(f"{name} must be floating point; got {logits.dtype}")
    if student.dim() < 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student_logits and teacher_logits must have the same shape, [batch, classes] or [batch, time, vocab]; "
            f"got {list(student.shape)} and {list(teacher.shape)}"
        )


def _check_labels(labels: Tensor, logits: Tensor, ignore_index: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:-1]:
        wanted = list(logits.shape[:-1])
        raise ValueError(f"labels must be int64 of shape {wanted}; got {labels.dtype} {list(labels.shape)}")
    counted = labels[labels != ignore_index]
    if labels.device.type == "cpu" and len(counted):  # looking at values would make a GPU wait
        low, high = int(counted.min()), int(counted.max())
        if low < 0 or high >= logits.shape[-1]:
            allowed = f"0..{logits.shape[-1] - 1}, or {ignore_index} for padding"
            raise ValueError(f"labels must be {allowed}; got values from {low} to {high}")


def check_range(name: str, value: float, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {allowed}; got {value}")


def _check_option(name: str, value: str, options: object) -> None:
    if value not in get_args(options):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(options)))}; got {value!r}")
