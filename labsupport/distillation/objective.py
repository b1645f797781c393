"""What a `Distiller` minimizes: the student with its loss, and the rules for its settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from labsupport.distillation.losses import IGNORE_INDEX, Divergence, FeatureLoss, distillation_loss
from labsupport.lm.activations import captured_outputs

Objective = Literal["logits", "features", "mixed"]


class StudentObjective(nn.Module):
    """The student with its loss, and the projections that train with it: what DistributedDataParallel wraps."""

    def __init__(self, student: nn.Module, projections: Iterable[FeatureLoss], settings: dict[str, Any]) -> None:
        super().__init__()
        self.student, self.projections, self.settings = student, nn.ModuleList(projections), settings

    def forward(
        self, inputs: Tensor, labels: Tensor, teacher_logits: Tensor | None, teacher_features: list[Tensor]
    ) -> Float[Tensor, ""]:
        """The sum of the loss over all positions that count."""
        chosen, layers = self.settings, [ours for ours, _ in self.settings["feature_layers"]]
        with captured_outputs(self.student, layers if len(self.projections) else []) as outputs:
            logits = model_logits(self.student(inputs))
        if teacher_logits is None:
            return distillation_loss(logits, logits, labels, alpha=0.0, reduction="sum")
        if chosen["objective"] == "features":
            hard = distillation_loss(logits, logits, labels, alpha=0.0, reduction="sum")
            total, weight = (1 - chosen["alpha"]) * hard, 1.0
        else:
            total = distillation_loss(
                logits, teacher_logits, labels, chosen["temperature"], chosen["alpha"],
                divergence=chosen["divergence"], beta=chosen["beta"], reduction="sum",
            )  # fmt: skip
            weight = chosen["feature_weight"]
        features = last_features(outputs, layers) if len(self.projections) else []
        for projection, ours, theirs in zip(self.projections, features, teacher_features, strict=False):
            total = total + chosen["alpha"] * weight * projection(ours, theirs, labels != IGNORE_INDEX, reduction="sum")
        return total


def last_features(outputs: Mapping[str, Sequence[Tensor]], names: Sequence[str]) -> list[Tensor]:
    """What `captured_outputs` has seen last of each named module; an image [batch, channels, y, x] as one vector."""
    last = [outputs[name][-1] for name in names]
    return [each.flatten(1) if each.dim() == 4 else each for each in last]


def model_logits(output: Any) -> Tensor:
    """Of a tensor itself, or of the object that Hugging Face models return."""
    return getattr(output, "logits", output)


def check_settings(student: nn.Module, teacher: nn.Module | None, settings: dict[str, Any]) -> None:
    for name, options in (("objective", get_args(Objective)), ("divergence", get_args(Divergence))):
        if settings[name] not in options:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {settings[name]!r}")
    bounds = {
        "temperature": (0 < settings["temperature"] < math.inf, "positive and finite"),
        "alpha": (0 <= settings["alpha"] <= 1, "between 0 and 1"),
        "beta": (0 < settings["beta"] < 1, "between 0 and 1, both excluded"),
        "feature_weight": (settings["feature_weight"] >= 0, "0 or more"),
        "batch_size": (settings["batch_size"] >= 1, "at least 1"),
        "learning_rate": (settings["learning_rate"] > 0, "positive"),
        "weight_decay": (settings["weight_decay"] >= 0, "0 or more"),
        "warmup": (settings["warmup"] >= 0, "0 or more"),
        "max_grad_norm": (settings["max_grad_norm"] > 0, "positive"),
    }
    for name, (good, allowed) in bounds.items():
        if not good:
            raise ValueError(f"{name} must be {allowed}; got {settings[name]}")
    if teacher is None:
        if settings["alpha"] != 0 or settings["objective"] != "logits":
            given = f"alpha={settings['alpha']} and objective={settings['objective']!r}"
            raise ValueError(f"teacher may be None only with alpha=0 and objective='logits'; got {given}")
        return
    pairs = settings["feature_layers"]
    if (settings["objective"] == "logits") != (not pairs):
        raise ValueError(
            f"feature_layers must be given for objective 'features' and 'mixed', and only there; got {pairs}"
        )
    for pair in pairs:
        for model, name in zip((student, teacher), pair, strict=True):
            if name not in dict(model.named_modules()):
                raise ValueError(f"feature_layers must be (student's, teacher's) module names; there is no {name!r}")
    frozen = {id(parameter) for parameter in teacher.parameters()}
    if any(id(parameter) in frozen for parameter in student.parameters()):
        raise ValueError(
            "student must not share parameters with teacher, which is frozen; give a copy.deepcopy of them"
        )


def overflow(student: nn.Module, step: int, loss: float, norm: float) -> ValueError:
    """What to say before an update whose gradients would make every weight NaN; the gradients are removed."""
    student.zero_grad(set_to_none=True)
    dtype = str(next(student.parameters()).dtype).removeprefix("torch.")
    return ValueError(
        f"step {step + 1}: the loss is {loss:g} and its gradient {norm:g}; the student, in {dtype}, is as it was "
        f"before this step. Train it in float32 (student.float()), or with a lower learning_rate"
    )
