"""Without correlation between inputs, GPTQ is round-to-nearest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checks.check import Inputs
from labsupport.checks.ex04_gptq.drawing import exact_inputs
from labsupport.checks.ex04_gptq.gptq_check import DEFAULTS, GPTQCheck
from labsupport.checks.ex04_gptq.reading import read_weight
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain

# Mean square error over that of the coarsest grid in use, step² / 12: right variants are at most at 1.2, one bit less
# at 3.4 and more.
COARSER = 2.7


class CheckGrid(GPTQCheck):
    name = "check_grid"
    points = 3
    holds = "every row and group has a scale of its own, and where inputs do not correlate GPTQ is round-to-nearest"

    def inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed + 10)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32)

        weight = normal(6, 80)
        rows = torch.logspace(-4, 0, 6, dtype=torch.float32)[:, None]
        groups = torch.tensor([1.0, 0.03, 0.3], dtype=torch.float32)
        some_zero = weight.clone()
        some_zero[1], some_zero[4, 32:64] = 0, 0
        plain = exact_inputs(torch.eye(80, dtype=torch.float64))
        return {
            "groups of different size": [weight * groups.repeat_interleave(32)[:80], plain, 4, 32],
            "rows of different size": [weight * rows, plain, 4, 32],
            "inputs that do not correlate": [weight, plain * 3, 4, 32],
            "a row of zeros, and a group of zeros in another row": [some_zero, plain, 4, 32],
            "8 bits": [weight, plain, 8, 32],
            "no bits and no group_size given (4 and 64)": [
                normal(6, 160) * groups.repeat_interleave(64)[:160],
                exact_inputs(torch.eye(160, dtype=torch.float64)),
            ],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, _, *options) in inputs.items():
            bits, group_size = options or DEFAULTS.values()
            value = returned(values[case], case)
            weight = weight.double()
            result = read_weight(value, weight, case, _why_not_finite(value, weight, group_size))
            parts = []
            for w, q in zip(weight.split(group_size, 1), result.split(group_size, 1), strict=True):
                parts.append((w, q, w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)))
            for w, q, step in parts:  # first: what is rounded to another level is off for that reason alone
                nearest = (w[:, :, None] - q[:, None, :]).abs().amin(2)
                if not ((q - w).abs() <= nearest + 1e-2 * step).all():
                    raise Wrong(f"for {case} (H is a multiple of the identity) {_not_nearest(w, q, nearest, step)}")
            if (coarser := _coarser(parts)) > COARSER:
                raise Wrong(
                    f"for {case} errors are those of steps {coarser**0.5:.1f} times as wide as the widest that "
                    f"{bits} bits need, max|w| / {2 ** (bits - 1) - 1} of a row and group: spread all 2**bits levels "
                    "over its range"
                )
            for index, (w, q, step) in enumerate(parts):
                error = (q - w).abs()
                if not (error <= step * 1.001 + 1e-9).all():
                    raise Wrong(f"for {case}, {_far_off(w, q, step, index, bits)}")


def _coarser(parts: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """The mean square error over step² / 12, if it is about the same in all rows and groups; else 0."""
    each = torch.cat([
        (12 * ((q - w) / step.clamp(min=1e-300)).square().mean(1))[(step > 0).flatten()] for w, q, step in parts
    ])  # fmt: skip
    return float(each.mean()) if each.max() < 8 * each.min() else 0.0


def _why_not_finite(value: Plain, weight: Tensor, group_size: int) -> str:
    """The cause, where only rows that hold a group of zeros contain NaN or inf."""
    if not isinstance(value, Tensor) or value.shape != weight.shape or not value.is_floating_point():
        return ""
    zeros = torch.stack([(w == 0).all(1) for w in weight.split(group_size, 1)]).any(0)
    if zeros[(~value.isfinite()).any(1)].all():
        return "a group of zeros has no range, its scale is 0, and 0 / 0 is NaN; put a tiny floor under the scale"
    return ""


def _far_off(w: Tensor, q: Tensor, step: Tensor, index: int, bits: int) -> str:
    steps = torch.where(step > 0, (q - w).abs() / step.clamp(min=1e-300), 0)
    if (q - w).abs()[(step == 0).flatten()].any():
        return f"a group of zeros came back as {q[(step == 0).flatten()].abs().max():.3g}; it must stay zero"
    row = int(steps.amax(1).argmax())
    column = int(steps[row].argmax())
    if not q[row].any():
        return (
            f"row {row} of group {index} came back as zeros, though it holds {w[row, column]:.3g}: each row and each "
            "group needs a scale of its own, with a floor under it that is far below all real scales"
        )
    return (
        f"row {row} of group {index} is up to {steps.max():.3g} steps off, {w[row, column]:.3g} became "
        f"{q[row, column]:.3g} (a step is max|w| / {2 ** (bits - 1) - 1} of that row and group): "
        "each row and each group needs a scale of its own"
    )


def _not_nearest(w: Tensor, q: Tensor, nearest: Tensor, step: Tensor) -> str:
    off = (q - w).abs() > nearest + 1e-2 * step
    row, column = (int(i) for i in off.nonzero()[0])
    levels = q[row]
    better = levels[(levels - w[row, column]).abs().argmin()]
    text = (
        f"no column can compensate for another, yet {w[row, column]:.4g} (row {row}) became {q[row, column]:.4g}, "
        f"though its row and group hold the level {better:.4g}: "
    )
    toward_zero, down = (q.abs() <= w.abs() + 1e-2 * step)[off].all(), (q <= w + 1e-2 * step)[off].all()
    if off.double().mean() < 0.25:  # rounding to one side is wrong for half of the weights
        return f"{text}is H = inputs.T @ inputs?"
    if toward_zero and not down:
        return f"{text}that is truncated, toward zero; round to the nearest"
    if down:
        return f"{text}that is rounded down; round to the nearest"
    return f"{text}is H = inputs.T @ inputs, and q rounded to the nearest?"


check_grid = CheckGrid()
