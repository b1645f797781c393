"""The student's accuracy on images that it never saw."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.calling import StudentCheck
from labsupport.checks.ex07_prune_and_distill.digits import draw_digits
from labsupport.checks.ex07_prune_and_distill.student_reading import ACTIVATIONS, read_student, require_small
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain

MIN_ACCURACY = 0.91


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
        accuracies = []
        for case in [key for key in inputs if not key.startswith("_")]:
            layers, (images, labels) = read_student(values[case], case), inputs[f"_{case}"]
            require_small(layers)
            sizes = [tuple(tensor.shape) for layer in layers if isinstance(layer, list) for tensor in layer]
            try:
                logits = _forward(layers, images.double())
                accuracies.append(float((logits.argmax(-1) == labels).double().mean()))
            except RuntimeError:
                raise Wrong(f"the student's layers do not fit together, 64 -> ... -> 10; got {sizes}") from None
            if logits.shape[1:] != (10,):
                raise Wrong(f"the student must return 10 logits for each image; got {list(logits.shape[1:])}")
        accuracy = sum(accuracies) / len(accuracies)
        if accuracy < MIN_ACCURACY:
            raise Wrong(
                f"the pruned student classifies {accuracy:.1%} of unseen images correctly, "
                f"at least {MIN_ACCURACY:.0%} are required "
                "(a student of the labels alone reaches 60 to 87 %, because most labels are wrong: "
                "trust the teacher, with a large alpha; "
                "after pruning, train for a few hundred steps more at a learning rate of about 0.01)"
            )


def _forward(layers: list[Any], x: Tensor) -> Tensor:
    for layer in layers:
        x = ACTIVATIONS[layer](x) if isinstance(layer, str) else F.linear(x, *(tensor.double() for tensor in layer))
    return x


check_student_accuracy = CheckStudentAccuracy()
