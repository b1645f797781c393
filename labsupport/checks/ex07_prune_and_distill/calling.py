"""The calls of the student's three functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.plain import Opaque, Plain, call, plain

PASSED_OVER = ("Dropout", "Identity", "Flatten")  # layers that do nothing to a vector in eval mode


class MaskCheck(Check):
    """Inputs: a case -> [weight, sparsity]."""

    needs = ("magnitude_mask",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer["magnitude_mask"], *arguments)[0] for case, arguments in inputs.items()}


class LossCheck(Check):
    """Inputs: a case -> [student_logits, teacher_logits, labels, options]."""

    needs = ("distillation_loss",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {
            case: call(answer["distillation_loss"], *arguments, **options)[0]
            for case, (*arguments, options) in inputs.items()
        }


class StudentCheck(Check):
    """Inputs: a case -> {"teacher": layers, "images", "labels"}; held-out images and labels stay with the judge."""

    needs = ("train_student",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        values = {}
        for case, given in inputs.items():
            teacher = network_of(given["teacher"])
            values[case], student = call(answer["train_student"], teacher, given["images"], given["labels"])
            if "returned" in values[case]:
                values[case]["returned"] = layers_of(student)
        return values


def network_of(layers: list[list[Tensor]]) -> nn.Sequential:
    """Linear layers with ReLU between them: the teacher that the student's function gets, in eval mode and frozen."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), dtype=weight.dtype)
        linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval().requires_grad_(False)


def layers_of(student: Any) -> Plain:
    """The student's layers as plain values; of anything else than a Sequential, the name of its type."""
    if not isinstance(student, nn.Sequential):
        return None if student is None else Opaque(type(student).__name__)
    found: list[Any] = []
    for module in student:
        if isinstance(module, nn.Linear):
            found.append([plain(each) for each in (module.weight, module.bias) if each is not None])
        elif isinstance(module, nn.Sequential):
            inner = layers_of(module)
            found += inner if isinstance(inner, list) else [type(module).__name__]
        elif type(module).__name__ not in PASSED_OVER:
            found.append(type(module).__name__)
    return found
