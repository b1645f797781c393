"""The distillation loss of a language model."""

from __future__ import annotations

from typing import Any

import torch

from labsupport.checks.check import Inputs
from labsupport.checks.ex07_prune_and_distill.calling import LossCheck
from labsupport.checks.ex07_prune_and_distill.drawing import IGNORE, draw_logits
from labsupport.checks.ex07_prune_and_distill.loss_reading import judge_losses
from labsupport.checks.plain import Plain


class CheckLossSequences(LossCheck):
    name = "check_loss_sequences"
    points = 3
    holds = "a language model's loss is a mean over the tokens that count: length and padding do not change it"

    def inputs(self, seed: int) -> dict[str, Any]:
        whole = draw_logits(seed + 20, 2, 6, 7)
        student, teacher, labels = draw_logits(seed + 21, 3, 8, 7)
        lengths = torch.tensor([8, 5, 2])
        padding = torch.arange(8) >= lengths[:, None]
        student[padding], teacher[padding] = 30 * student[padding], -30 * teacher[padding]
        padded = (student, teacher, labels.masked_fill(padding, IGNORE))
        drawn: dict[str, Any] = {}
        for name, data in (("[2, 6, 7]", whole), ("[3, 8, 7] with padding", padded)):
            for alpha in (0.0, 1.0, 0.5):
                drawn[f"logits {name}, alpha={alpha:g}"] = [*data, {"temperature": 2.0, "alpha": alpha}]
        longer = [torch.cat([part] * 4, dim=1) for part in whole]
        drawn["the same tokens four times over, alpha=0.5"] = [*longer, {"temperature": 2.0, "alpha": 0.5}]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        hint = (
            "flatten to [batch * time, vocab] and labels to [batch * time]; the mask, labels != -100, is a bool tensor"
        )
        judge_losses(inputs, values, hint)


check_loss_sequences = CheckLossSequences()
