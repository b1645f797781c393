"""The student's accuracy on images that it never saw."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.calling import StudentCheck, network_of
from labsupport.checks.ex07_prune_and_distill.digits import WRONG_LABELS, draw_digits
from labsupport.checks.ex07_prune_and_distill.student_reading import ACTIVATIONS, read_student, require_small
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain

MIN_ACCURACY = 0.91
CHANCE = 0.25  # ten digits: guessing reaches 0.1
FOLLOWS = 0.03  # students of the labels, or of a small alpha, are above 0.045; those trained too little below 0.01


class CheckStudentAccuracy(StudentCheck):
    name = "check_student_accuracy"
    points = 4
    holds = f"the pruned student classifies at least {MIN_ACCURACY:.0%} of unseen images correctly (mean of two draws)"

    def inputs(self, seed: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for i in (1, 2):
            case, images, labels = draw_digits(seed + i)
            drawn[f"draw {i}"] = case
            drawn[f"_draw {i}"] = [images, labels]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        accuracies, followed, alone = [], [], []
        for case in [key for key in inputs if not key.startswith("_")]:
            layers, (images, labels) = read_student(values[case], case), inputs[f"_{case}"]
            require_small(layers)
            logits = _logits(layers, images)
            accuracies.append(_share(logits, labels))
            alone.append(logits.argmax(-1).unique().numel() == 1)
            given, teacher = inputs[case], network_of(inputs[case]["teacher"])
            trained = _logits(layers, given["images"])
            followed.append(_share(trained, given["labels"]) - _share(teacher(given["images"]), given["labels"]))
        accuracy = sum(accuracies) / len(accuracies)
        if accuracy < MIN_ACCURACY:
            text = (
                f"the pruned student classifies {accuracy:.1%} of unseen images correctly, "
                f"at least {MIN_ACCURACY:.0%} are required"
            )
            raise Wrong(f"{text}: {_why_inaccurate(accuracy, sum(followed) / len(followed), all(alone))}")


def _why_inaccurate(accuracy: float, followed: float, alone: bool) -> str:
    """``followed``: how much more often than its teacher it agrees with the labels that it was given.

    Of 40 % of the labels it is known that they are right: who reads well agrees with them, and who reads badly cannot.
    """
    excess = followed + (1 - WRONG_LABELS) * (1 - accuracy)
    if alone:
        return "it takes every image for the same digit, so it has learned nothing, or lost all with its weights"
    if accuracy < CHANCE:
        return (
            "that is about chance, 10 %, so it has hardly learned: does every step call zero_grad, backward and "
            "optimizer.step, on the parameters of the student that you return, at a learning rate of about 0.01?"
        )
    if excess > FOLLOWS:
        return (
            f"it agrees with the labels that it was given {excess:.0%} more often than one that reads as well as it "
            "does, and most are wrong (a student of the labels alone reaches 60 to 87 %): trust the teacher, with a "
            "large alpha"
        )
    return (
        "it does not follow the wrong labels, so it was trained too little, or lost what it knew when it was pruned: "
        "after pruning, train for a few hundred steps more at a learning rate of about 0.01"
    )


def _logits(layers: list[Any], images: Tensor) -> Tensor:
    """[images, 10], or `Wrong`."""
    try:
        logits = _forward(layers, images.double())
    except RuntimeError:
        sizes = [tuple(tensor.shape) for layer in layers if isinstance(layer, list) for tensor in layer]
        raise Wrong(f"the student's layers do not fit together, 64 -> ... -> 10; got {sizes}") from None
    if logits.shape[1:] != (10,):
        raise Wrong(f"the student must return 10 logits for each image; got {list(logits.shape[1:])}")
    return logits


def _share(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(-1) == labels).double().mean())


def _forward(layers: list[Any], x: Tensor) -> Tensor:
    for layer in layers:
        x = ACTIVATIONS[layer](x) if isinstance(layer, str) else F.linear(x, *(tensor.double() for tensor in layer))
    return x


check_student_accuracy = CheckStudentAccuracy()
