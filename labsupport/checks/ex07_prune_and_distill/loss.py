"""The distillation loss of a classifier."""

from __future__ import annotations

from typing import Any

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.calling import LossCheck
from labsupport.checks.ex07_prune_and_distill.drawing import draw_logits
from labsupport.checks.ex07_prune_and_distill.loss_reading import judge_losses
from labsupport.checks.plain import Plain


class CheckLoss(LossCheck):
    name = "check_loss"
    points = 4
    holds = "(1 - alpha) · cross-entropy + alpha · T² · KL(teacher || student at T), and finite for large logits"

    def inputs(self, seed: int) -> dict[str, Any]:
        data = draw_logits(seed + 10, 6, 5)
        student, teacher, labels = draw_logits(seed + 11, 6, 5)
        return {
            "alpha=0, temperature=4": [*data, {"temperature": 4.0, "alpha": 0.0}],
            "alpha=1, temperature=4": [*data, {"temperature": 4.0, "alpha": 1.0}],
            "alpha=1, temperature=1": [*data, {"temperature": 1.0, "alpha": 1.0}],
            "alpha=0.7, temperature=4": [*data, {"temperature": 4.0, "alpha": 0.7}],
            "no temperature and no alpha given (2 and 0.5)": [*data, {}],
            "logits of many hundreds": [student * 200, teacher * 200, labels, {}],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_losses(inputs, values)


check_loss = CheckLoss()
