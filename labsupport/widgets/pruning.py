"""The moving pictures of chapter 2. Each function takes real weights, logits or measured tables and returns a `Live`.

What takes seconds to measure (perplexity, milliseconds) comes in as a table that a cell of the notebook has measured
before; what takes milliseconds (masks, soft targets) is computed as the controls move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
from jaxtyping import Float, Int64
from matplotlib.colors import ListedColormap
from torch import Tensor

from labsupport.distillation.losses import distillation_loss
from labsupport.pruning.magnitude import keep_largest, magnitude_mask
from labsupport.pruning.semi_structured import nm_mask, parse_pattern
from labsupport.pruning.structured import keep_channels
from labsupport.pruning.wanda import wanda_scores
from labsupport.widgets.live import Live
from labsupport.widgets.style import (
    BLACK,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    VERMILION,
    label,
    legend,
    new_figure,
    percent,
    plain_ticks,
)

if TYPE_CHECKING:
    import pandas as pd

KEPT_OR_NOT = ListedColormap(["#FFFFFF", BLUE])
MARKERS = "osD^vP"


def sparsity(weight: Float[Tensor, "out in"], measured: pd.DataFrame, quality: str, times: Sequence[str]) -> Live:
    """What magnitude pruning removes, what it costs in quality, and what it brings in milliseconds, side by side.

    weight: a layer's weight, for mask and histogram.
    measured: indexed by sparsity (0 to 1), as many rows as the slider has places; column `quality` (its name is the
        label of the axis), and `times`, columns of milliseconds.
    """
    weight = weight.detach().float()
    shown = weight[:48, :72]
    shares = [float(share) for share in measured.index]
    values = measured[quality].to_numpy(dtype=float)
    edges = np.linspace(-1, 1, 61) * float(weight.abs().max())
    everything = np.histogram(weight.numpy(), edges)[0]

    @cache
    def pruned(share: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Which of the shown weights stay, the histogram of all that stay, and the largest that goes."""
        mask = magnitude_mask(weight, share)
        largest = float(weight[~mask].abs().max()) if not bool(mask.all()) else 0.0
        kept = np.histogram(weight[mask].numpy(), edges)[0]
        return mask[: shown.shape[0], : shown.shape[1]].numpy(), kept, largest

    figure, axes = new_figure("AB;CD", height=5.0, height_ratios=[1.1, 1])
    left, right, below, beside = axes["A"], axes["B"], axes["C"], axes["D"]
    label(left, "Mask: what stays is blue", "input channel", "output channel")
    label(right, "Weights", "weight", "number of weights")
    label(below, "What it costs", "zeros [%]", quality)
    label(beside, "What it brings", "zeros [%]", "milliseconds")
    picture = left.imshow(
        np.ones(shown.shape), cmap=KEPT_OR_NOT, vmin=0, vmax=1, aspect="auto", interpolation="nearest", animated=True
    )
    right.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.08 * everything.max()))
    right.stairs(everything, edges, fill=True, color=LIGHT_GREY, label="zeroed")
    bars = right.stairs(everything, edges, fill=True, color=BLUE, animated=True, label="kept")
    legend(right, loc="upper right")
    below.plot(np.array(shares) * 100, values, "o-", ms=3.5, color=BLUE)
    if values.max() > 4 * values.min() > 0:
        below.set_yscale("log")
        plain_ticks(below.yaxis, _round_ticks(values))
    here = below.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]
    for name, colour, marker in zip(times, CYCLE, MARKERS, strict=False):
        beside.plot(np.array(shares) * 100, measured[name], f"{marker}-", ms=3.5, color=colour, label=name)
    beside.set_ylim(0, 1.25 * float(measured[list(times)].to_numpy().max()))
    legend(beside, loc="lower left")
    marks = beside.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]

    def update(zeros: float) -> None:
        mask, kept, _ = pruned(zeros)
        picture.set_data(mask)
        bars.set_data(kept)
        row = shares.index(zeros)
        here.set_data([100 * zeros], [values[row]])
        marks.set_data([100 * zeros] * len(times), [measured[name].iloc[row] for name in times])

    def describe(zeros: float) -> str:
        row, dense = shares.index(zeros), measured.iloc[0]
        took = "; ".join(
            f"{name}: {measured[name].iloc[row]:.3g} ms, {dense[name] / measured[name].iloc[row]:.2f} times as fast"
            for name in times
        )
        limit = f", all of magnitude up to {pruned(zeros)[2]:.3g}" if zeros else ""
        return f"{100 * zeros:.0f} % zeros{limit}. {quality}: {values[row]:.4g} (dense {values[0]:.4g}). {took}."

    choices = [(f"{100 * share:.0f} %", share) for share in shares]
    start = shares[len(shares) // 2]
    return Live(
        figure,
        update,
        describe,
        zeros=ipywidgets.SelectionSlider(options=choices, value=start, description="Zeros"),
    )


def semi_structured(weight: Float[Tensor, "out in"], inputs: Float[Tensor, "*lead in"], rows: int = 12) -> Live:
    """2 of every 4: which weights stay under a pattern and a score, and the output error, on inputs never seen.

    weight, inputs: a layer's weight and real activations. Their first half gives Wanda's norms, the second judges.
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


def channel_importance(scores: Mapping[str, Float[Tensor, " channels"]], measured: pd.DataFrame, quality: str) -> Live:
    """Which channels a score would remove, whether scores agree, and what removing them costs.

    scores: by name of the score, one number a channel of one layer. measured: indexed by the share removed, a column of
    the quality for each score. quality: label of that axis.
    """
    shares = [float(share) for share in measured.index]
    names = list(scores)
    sorted_scores = {name: np.sort(score.detach().float().numpy())[::-1] for name, score in scores.items()}
    channels = len(next(iter(sorted_scores.values())))

    @cache
    def kept(score: str, removed: float) -> Tensor:
        return keep_channels(scores[score].detach().float(), removed)

    figure, (left, right) = new_figure(1, 2, height=3.3, width_ratios=[1.25, 1])
    label(left, "Importance, most important first", "rank of the channel", "share of the largest")
    label(right, "What removing them costs", "channels removed [%]", quality)
    left.set(xlim=(0, channels), ylim=(1e-4, 1.6), yscale="log")
    stays = left.fill_between([0, 1], [1, 1], 1e-4, color=BLUE, animated=True, step="mid")
    goes = left.fill_between([0, 1], [1, 1], 1e-4, color=LIGHT_GREY, animated=True, step="mid")
    edge = left.axvline(0, color=VERMILION, lw=2, animated=True)
    note = left.text(0.97, 0.95, "", transform=left.transAxes, ha="right", va="top", color=VERMILION, animated=True)
    for name, colour, marker in zip(names, CYCLE, MARKERS, strict=False):
        right.plot(np.array(shares) * 100, measured[name], f"{marker}-", ms=4, color=colour, label=name)
    if measured[names].to_numpy().max() > 4 * measured[names].to_numpy().min():
        right.set_yscale("log")
        plain_ticks(right.yaxis, _round_ticks(measured[names].to_numpy()))
    legend(right, loc="upper left")
    here = right.plot([], [], "D", ms=9, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]

    def update(score: str, removed: float) -> None:
        values = np.maximum(sorted_scores[score] / sorted_scores[score][0], 1.2e-4)
        num_kept = int(kept(score, removed).sum())
        for area, start, end in ((stays, 0, num_kept), (goes, num_kept, channels)):
            ranks = np.arange(start, end)
            outline = np.column_stack(
                (np.append(ranks, ranks[::-1]), np.append(values[start:end], np.full(end - start, 1e-4)))
            )
            area.set_verts([outline] if end > start else [])
        edge.set_xdata([num_kept, num_kept])
        note.set_text(f"{channels - num_kept} of {channels} go")
        here.set_data([100 * removed], [measured[score].iloc[shares.index(removed)]])

    def describe(score: str, removed: float) -> str:
        gone = ~kept(score, removed)
        agree = ""
        if bool(gone.any()):
            same = ", ".join(
                f"{int((gone & ~kept(name, removed)).sum())} of them {name} would remove as well"
                for name in names
                if name != score
            )
            agree = f" ({same})"
        value = measured[score].iloc[shares.index(removed)]
        return f"By {score}: {int(gone.sum())} of {channels} channels go{agree}. {quality}: {value:.4g}."

    choices = [(f"{100 * share:.0f} %", share) for share in shares]
    return Live(
        figure,
        update,
        describe,
        score=ipywidgets.ToggleButtons(options=names, description="Score", style={"button_width": "auto"}),
        removed=ipywidgets.SelectionSlider(options=choices, value=shares[len(shares) // 2], description="Removed"),
    )


def temperature(
    images: Float[Tensor, "n 64"],
    teacher_logits: Float[Tensor, "n classes"],
    student_logits: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
) -> Live:
    """Soft targets: what a teacher says of an image at a temperature, and why the loss is multiplied by T².

    images are 8 × 8 pixels. The right panel is the size of the soft loss's gradient with respect to the student's
    logits, mean over all images, with T² and without.
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


def trade_off(table: pd.DataFrame, quality: str, costs: Mapping[str, str], lower_is_better: bool = True) -> Live:
    """Every model of a pipeline by what it costs and how good it is; the front are those that no other beats in both.

    table: indexed by model. quality: a column. costs: label -> column (bytes, milliseconds), one shown at a time.
    """
    names, values = list(table.index), table[quality].to_numpy(dtype=float)
    worse = values if lower_is_better else -values
    all_costs = {text: table[column].to_numpy(dtype=float) for text, column in costs.items()}

    @cache
    def front(cost: str) -> list[int]:
        spent = all_costs[cost]
        order = sorted(range(len(names)), key=lambda i: (spent[i], worse[i]))
        best, found = np.inf, []
        for i in order:
            if worse[i] < best:
                best = worse[i]
                found.append(i)
        return found

    @cache
    def choice(cost: str, budget: int) -> int | None:
        within = np.flatnonzero(all_costs[cost] <= all_costs[cost].max() * budget / 100)
        return int(within[np.argmin(worse[within])]) if len(within) else None

    figure, (axis, key) = new_figure(1, 2, height=3.8, width_ratios=[1.35, 1])
    key.axis("off")
    label(axis, "Every stage and every baseline", "% of the dearest", quality)
    cheapest = min(100 * float((spent / spent.max()).min()) for spent in all_costs.values())
    axis.set(xlim=(0.8 * cheapest, 130), xscale="log")
    plain_ticks(axis.xaxis, _round_ticks(np.array([cheapest, 100])))
    spread = values.max() - values.min()
    axis.set_ylim(values.min() - 0.12 * spread, values.max() + 0.15 * spread)
    line = axis.plot([], [], "-", color=GREEN, lw=2, animated=True)[0]
    dots = axis.plot([], [], "o", ms=6, color=BLUE, animated=True)[0]
    numbers = [
        axis.annotate(str(i + 1), (0, 0), (5, 5), textcoords="offset points", animated=True) for i in range(len(names))
    ]
    limit = axis.axvline(50, color=VERMILION, ls="--", animated=True)
    chosen = axis.plot([], [], "D", ms=11, mfc="none", mec=VERMILION, mew=2.2, animated=True)[0]
    rows = [
        key.text(0, 0.97 - 0.095 * i, f"{i + 1}  {name}", transform=key.transAxes, va="top", fontsize=9, animated=True)
        for i, name in enumerate(names)
    ]
    label(key, "Green: on the front")

    def update(cost: str, budget: int) -> None:
        share = 100 * all_costs[cost] / all_costs[cost].max()
        on_front = front(cost)
        line.set_data(share[on_front], values[on_front])
        dots.set_data(share, values)
        picked = choice(cost, budget)
        for i, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            number.xy = (share[i], values[i])
            row.set_color(VERMILION if i == picked else GREEN if i in on_front else BLACK)
            row.set_fontweight("bold" if i == picked else "normal")
        limit.set_xdata([budget, budget])
        chosen.set_data(([share[picked]], [values[picked]]) if picked is not None else ([], []))

    def describe(cost: str, budget: int) -> str:
        picked = choice(cost, budget)
        if picked is None:
            return f"At most {budget} % of the dearest in {cost}: no model is that cheap."
        share = all_costs[cost][picked] / all_costs[cost].max()
        return (
            f"At most {budget} % of the dearest in {cost}: best is “{names[picked]}”, {percent(share)}, "
            f"{quality} {values[picked]:.4g}. On the front: {', '.join(names[i] for i in front(cost))}."
        )

    return Live(
        figure,
        update,
        describe,
        cost=ipywidgets.ToggleButtons(options=list(all_costs), description="Cost", style={"button_width": "auto"}),
        budget=ipywidgets.IntSlider(value=50, min=5, max=100, step=5, description="Budget [%]"),
    )


def _round_ticks(values: np.ndarray) -> list[float]:
    """1, 2 and 5 times powers of ten within the values, for a logarithmic axis."""
    ticks = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5)]
    return [tick for tick in ticks if 0.9 * values.min() <= tick <= 1.1 * values.max()]


__all__ = ["channel_importance", "semi_structured", "sparsity", "temperature", "trade_off"]
