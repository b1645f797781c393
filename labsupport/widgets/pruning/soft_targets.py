"""Distillation's temperature: the teacher's soft targets, and the size of their gradient."""

from __future__ import annotations

from functools import cache

import ipywidgets
import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from labsupport.distillation.losses import distillation_loss
from labsupport.widgets.live import Live
from labsupport.widgets.style import BLUE, GREEN, ORANGE, VERMILION, label, legend, new_figure, percent, plain_ticks


def temperature(
    images: Float[Tensor, "n 64"],
    teacher_logits: Float[Tensor, "n classes"],
    student_logits: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
) -> Live:
    """Soft targets: the teacher's probabilities for an image at a temperature, and why the loss is multiplied by T².

    images have 8 × 8 pixels. The right panel shows the norm of the soft loss's gradient with respect to the student's
    logits, averaged over all images, with T² and without.
    """
    classes = teacher_logits.shape[1]
    temperatures = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0]

    @cache
    def gradient(t: float) -> float:
        student = student_logits.detach().clone().requires_grad_()
        distillation_loss(student, teacher_logits, labels, t, alpha=1.0).backward()
        return float(len(labels) * student.grad.norm(dim=1).mean()) if student.grad is not None else 0.0

    figure, (left, middle, right) = new_figure(1, 3, height=2.9, width_ratios=[0.8, 1.5, 1.35])
    label(left, "The image")
    label(middle, "What the teacher says", "digit", "probability")
    label(right, "Gradient of the soft loss", "temperature T", "mean size")
    left.set(xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    picture = left.imshow(np.zeros((8, 8)), cmap="Greys", vmin=0, vmax=1, animated=True)
    bars = middle.bar(range(classes), np.zeros(classes), color=BLUE, animated=True)
    middle.set(ylim=(0, 1.05), xticks=range(classes))
    hidden = middle.text(0.98, 0.96, "", transform=middle.transAxes, ha="right", va="top", animated=True)
    with_square = [gradient(t) for t in temperatures]
    right.plot(temperatures, with_square, "o-", ms=4, color=BLUE, label="times T²")
    plain = [size / t**2 for size, t in zip(with_square, temperatures, strict=True)]
    right.plot(temperatures, plain, "s--", ms=4, color=ORANGE, label="without")
    right.set(xscale="log", yscale="log")
    plain_ticks(right.xaxis, [1, 2, 4, 8, 20])
    plain_ticks(right.yaxis)
    legend(right, loc="lower left")
    marks = right.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]

    def probabilities(image: int, t: float) -> Tensor:
        return (teacher_logits[image].detach().float() / t).softmax(0)

    def update(image: int, t: float) -> None:
        picture.set_data(images[image].view(8, 8).numpy())
        values = probabilities(image, t)
        for digit, (bar, value) in enumerate(zip(bars, values.tolist(), strict=True)):
            bar.set_height(value)
            bar.set_color(GREEN if digit == int(labels[image]) else BLUE)
        hidden.set_text(f"{percent(float(1 - values[labels[image]]))} on the other digits")
        index = temperatures.index(t)
        marks.set_data([t, t], [with_square[index], plain[index]])

    def describe(image: int, t: float) -> str:
        values = probabilities(image, t)
        first, second = values.topk(2).indices.tolist()
        entropy = float(-(values * values.clamp(min=1e-30).log()).sum())
        index = temperatures.index(t)
        return (
            f"A {int(labels[image])} at T = {t:g}: the teacher says {first} with {percent(float(values[first]))}, then "
            f"{second} with {percent(float(values[second]))}; entropy {entropy:.2f} nats. Mean gradient "
            f"{with_square[index]:.3g} with T², {plain[index]:.2g} without."
        )

    return Live(
        figure,
        update,
        describe,
        image=ipywidgets.IntSlider(value=0, min=0, max=len(images) - 1, description="Image"),
        t=ipywidgets.SelectionSlider(options=temperatures, value=4.0, description="T"),
    )
