"""The gradient of the distillation loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex07_prune_and_distill.calling import LossCheck
from labsupport.checks.ex07_prune_and_distill.drawing import draw_logits
from labsupport.checks.ex07_prune_and_distill.loss_oracles import right_loss
from labsupport.checks.ex07_prune_and_distill.loss_reading import near, read_loss
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain, call, plain


class CheckLossGradient(LossCheck):
    name = "check_loss_gradient"
    points = 2
    holds = "the student gets the gradient of both terms, the teacher gets none"

    def inputs(self, seed: int) -> dict[str, Any]:
        return {"alpha=0.6, temperature=3": [*draw_logits(seed + 30, 6, 5), {"temperature": 3.0, "alpha": 0.6}]}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        values = {}
        for case, (student, teacher, labels, options) in inputs.items():
            student, teacher = (logits.clone().requires_grad_() for logits in (student, teacher))
            values[case], loss = call(answer["distillation_loss"], student, teacher, labels, **options)
            if type(loss) is Tensor and loss.requires_grad and loss.dim() == 0:
                values[case]["gradients"] = [
                    plain(each) for each in torch.autograd.grad(loss, (student, teacher), allow_unused=True)
                ]
        return values

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (student, teacher, labels, options) in inputs.items():
            loss = read_loss(returned(values[case], case), case)
            if not near(loss, float(right_loss(student.double(), teacher.double(), labels, **options))):
                raise Wrong(f"for {case} the loss itself is not right yet: first let check_loss pass")
            if "gradients" not in values[case]:
                raise Wrong(
                    f"for {case} the loss has no graph behind it: use no .item(), .detach() or no_grad on the way"
                )
            student = student.double().requires_grad_()
            (wanted,) = torch.autograd.grad(right_loss(student, teacher.double(), labels, **options), student)
            mine, theirs = values[case]["gradients"]
            if isinstance(theirs, Tensor) and theirs.abs().max() > 0:
                raise Wrong(f"for {case} the teacher's logits get a gradient: detach them, the teacher does not learn")
            if not isinstance(mine, Tensor) or not torch.allclose(mine.double(), wanted, rtol=1e-3, atol=1e-6):
                raise Wrong(
                    f"for {case} the gradient of the student's logits is not that of the loss: let both terms keep "
                    "their graph (no .detach() or .data on student_logits)"
                )


check_loss_gradient = CheckLossGradient()
