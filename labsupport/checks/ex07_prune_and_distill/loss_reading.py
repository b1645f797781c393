"""The returned loss, or `Wrong`."""

from __future__ import annotations

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.loss_oracles import known_mistakes, right_loss
from labsupport.checks.judging import Wrong, float_tensor, returned, unchanged
from labsupport.checks.plain import Plain, describe


def judge_losses(inputs: Inputs, values: Plain, hint: str = "") -> None:
    for case, (student, teacher, labels, options) in inputs.items():
        loss = read_loss(returned(values[case], case, hint), case)
        unchanged(values[case], case, "student_logits", "teacher_logits", "labels")
        student, teacher = student.double(), teacher.double()
        right = float(right_loss(student, teacher, labels, **options))
        if near(loss, right):
            continue
        start = f"for {case} the loss is {loss:.5g}, it should be {right:.5g}"
        if loss != loss or loss in (float("inf"), -float("inf")):
            raise Wrong(
                f"{start}: take log_softmax, not the log of softmax; F.kl_div wants log-probabilities of the student "
                "first, then probabilities of the teacher (log_target=True if they are logarithms too)"
            )
        alpha, temperature = options.get("alpha", 0.5), options.get("temperature", 2.0)
        for mistake, value in known_mistakes(student, teacher, labels, temperature, alpha):
            if near(loss, value):
                raise Wrong(f"{start}: {mistake}")
        if alpha == 0:
            raise Wrong(
                f"{start}: with alpha=0 it is the mean cross-entropy of student_logits (no temperature) and labels"
            )
        if alpha == 1:
            raise Wrong(
                f"{start}: with alpha=1 it is T**2 * KL(teacher || student), both softened by T, "
                "averaged over positions"
            )
        raise Wrong(
            f"{start}: it is (1 - alpha) * hard + alpha * T**2 * soft, with temperature=2.0, alpha=0.5 by default"
        )


def near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 1e-4 * abs(wanted) + 1e-5


def read_loss(value: Plain, case: str) -> float:
    loss = float_tensor(value, f"for {case}, the loss")
    if loss.dim() > 0:
        raise Wrong(f"for {case} the loss must be one number, the mean over the batch; got {describe(value)}")
    return loss.item()
