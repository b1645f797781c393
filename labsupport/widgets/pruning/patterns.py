"""N:M patterns: which weights stay, and the output error."""

from __future__ import annotations

from functools import cache

import ipywidgets
import numpy as np
from jaxtyping import Float
from torch import Tensor

from labsupport.pruning.magnitude import keep_largest
from labsupport.pruning.semi_structured import nm_mask, parse_pattern
from labsupport.pruning.wanda import wanda_scores
from labsupport.widgets.live import Live
from labsupport.widgets.style import BLACK, GREEN, GREY, VERMILION, label, new_figure, percent


def semi_structured(weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"], rows: int = 12) -> Live:
    """2 of every 4: which weights stay under a pattern and a score, and the output error on held-out inputs.

    weight, inputs: a layer's weight and real activations. The first half gives Wanda's norms, the second
    measures the error.
    """
    weight = weight.detach().float()
    x = inputs.detach().float().reshape(-1, weight.shape[1])
    seen, judge = x[: len(x) // 2], x[len(x) // 2 :]
    power = (judge @ weight.t()).square().mean()
    all_scores = {"magnitude": weight.abs(), "Wanda": wanda_scores(weight, seen.norm(dim=0))}
    patterns = ["whole row", "2:4", "4:8", "1:2"]
    columns = min(48, weight.shape[1])

    @cache
    def measure(pattern: str, score: str) -> tuple[np.ndarray, float]:
        scores = all_scores[score]
        if pattern == patterns[0]:
            mask = keep_largest(scores, weight.shape[1] // 2)
        else:
            mask = nm_mask(scores, *parse_pattern(pattern))
        error = (judge @ (weight * mask - weight).t()).square().mean() / power
        return mask[:rows, :columns].numpy(), float(error)

    figure, (left, right) = new_figure(1, 2, height=3.3, width_ratios=[1.7, 1])
    label(left, "|weight|, what goes is crossed out", "input channel", "output channel")
    label(right, "Output error", "% of output power", "")
    size = weight[:rows, :columns].abs()
    left.imshow(size.numpy(), cmap="Blues", vmin=0, vmax=float(size.quantile(0.98)), aspect="auto")
    crosses = left.plot([], [], "x", ms=4, mew=1.3, color=VERMILION, animated=True)[0]
    lines = left.vlines([], -0.5, rows - 0.5, color=BLACK, lw=1.2, animated=True)
    left.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    pairs = [(pattern, score) for pattern in patterns for score in all_scores]
    errors = [100 * measure(*pair)[1] for pair in pairs]
    colours = [GREY if score == "magnitude" else GREEN for _, score in pairs]
    right.barh(range(len(pairs)), errors, color=colours, height=0.75)
    right.set_yticks(range(len(pairs)), [f"{pattern}, {score}" for pattern, score in pairs])
    right.invert_yaxis()
    box = right.barh([0], [errors[0]], height=0.9, fill=False, edgecolor=VERMILION, lw=2.2, animated=True)[0]

    def update(pattern: str, score: str) -> None:
        mask, _ = measure(pattern, score)
        where = np.argwhere(~mask)
        crosses.set_data(where[:, 1], where[:, 0])
        step = columns if pattern == patterns[0] else parse_pattern(pattern)[1]
        lines.set_segments([[(at - 0.5, -0.5), (at - 0.5, rows - 0.5)] for at in range(step, columns, step)])
        index = pairs.index((pattern, score))
        box.set_y(index - 0.45)
        box.set_width(errors[index])

    def describe(pattern: str, score: str) -> str:
        other = next(name for name in all_scores if name != score)
        best = measure(patterns[0], score)[1]
        error = measure(pattern, score)[1]
        where = "row" if pattern == patterns[0] else f"{pattern} group"
        return (
            f"Half of each {where} gone, chosen by {score}: output error {percent(error)} of the output power "
            f"(by {other} {percent(measure(pattern, other)[1])}; by {score} without a pattern {percent(best)})."
        )

    return Live(
        figure,
        update,
        describe,
        pattern=ipywidgets.SelectionSlider(options=patterns, value="2:4", description="Pattern"),
        score=ipywidgets.ToggleButtons(options=list(all_scores), description="Score", style={"button_width": "auto"}),
    )
