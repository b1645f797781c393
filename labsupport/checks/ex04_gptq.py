"""Exercise 4: GPTQ.

The checks know nothing of the student's grid. Any scale rule in use passes (asymmetric, symmetric on 2^b or 2^b - 1
codes), as do 0.5 to 5 % damping, blocks or none, the inverse updated step by step or factored once, and columns taken
from left to right or by falling diagonal of the Hessian. What is checked:

- levels: each row and group of the result holds at most 2^bits values;
- where inputs do not correlate (H a multiple of I) no column can make up for another, so GPTQ is round-to-nearest:
  every weight sits on the nearest level of its row and group, at most one step max|w| / (2^(bits-1) - 1) away;
- once columns 1..k-1 are rounded with errors d_i = w_i - q_i, the output error is least for the last column at
  w_k + sum_i H_ki d_i / H_kk. Rounding adds noise, but over many rows q_k - w_k has that slope in each d_i;
- the expected output error tr(dW C dWᵀ) under the inputs' true covariance C, against that of the coarsest grid in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from labsupport.checks import Check, Exercise, Wrong
from labsupport.checks.judging import float_tensor, returned, unchanged
from labsupport.checks.plain import Plain, call, describe

FORMULA = (
    "e = (w[:, j] - q) / U[j, j], then w[:, j+1:] -= e[:, None] * U[j, j+1:], where UᵀU = H⁻¹ and U is upper triangular"
)
SLOPE_TOLERANCE = 0.4  # damping takes up to 5 %, clipping at the ends of the grid up to 20 %, noise 5 %
ERROR_TOLERANCE = 1.6  # right variants reach 0.4 to 1.1 times the error compared with, wrong ones 2.2 and more

Answer = Mapping[str, Callable[..., Any]]
Inputs = Mapping[str, Any]


class GPTQCheck(Check):
    """All checks call the one function of this exercise. Inputs: a case -> [weight, inputs, bits, group_size]."""

    needs = ("gptq_quantize",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {
            case: call(answer["gptq_quantize"], weight, x, bits=bits, group_size=group_size)[0]
            for case, (weight, x, bits, group_size) in inputs.items()
        }


class CheckLevels(GPTQCheck):
    name = "check_levels"
    points = 4
    holds = "the result is a float [out, in], at most 2**bits levels a row and group; the arguments stay as they were"

    def inputs(self, seed: int) -> dict[str, Any]:
        drawn = {}
        for i, (out, columns, bits, group_size) in enumerate(
            [(8, 64, 4, 32), (6, 64, 3, 32), (5, 64, 2, 64), (6, 88, 3, 64)]
        ):
            weight, x, _ = _correlated(seed + i, out, columns, 256)
            groups = f"{columns // group_size} groups" + (
                f" and one of {columns % group_size}" if columns % group_size else ""
            )
            drawn[f"[{out}, {columns}], bits={bits}, group_size={group_size} ({groups})"] = [
                weight,
                x,
                bits,
                group_size,
            ]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, _, bits, group_size) in inputs.items():
            result = _weight(returned(values[case], case), weight, case)
            unchanged(values[case], case, "weight", "inputs")
            if torch.equal(result, weight.double()):
                raise Wrong(f"for {case} the weight comes back as it was given: nothing is quantized")
            most, (row, group) = _most_levels(result, group_size)
            if most > 2**bits:
                raise Wrong(
                    f"for {case}, row {row} of group {group} is on {most} levels; {bits} bits allow {2**bits}: "
                    "clamp the codes to the "
                    f"grid after the update too, and leave columns alone once they are rounded"
                )
            if torch.equal(result, result.round()) and result.abs().max() < 2**bits:
                raise Wrong(f"for {case} codes come back, not weights: return (q - zero_point) * scale")


class CheckGrid(GPTQCheck):
    name = "check_grid"
    points = 3
    holds = "every row and group has a scale of its own, and where inputs do not correlate GPTQ is round-to-nearest"

    def inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed + 10)
        weight = torch.randn(6, 80, generator=generator, dtype=torch.float32)
        rows = torch.logspace(-2, 0, 6, dtype=torch.float32)[:, None]
        groups = torch.tensor([1.0, 0.03, 0.3], dtype=torch.float32).repeat_interleave(32)[:80]
        return {
            "inputs that do not correlate": [weight, _exact_inputs(torch.eye(80, dtype=torch.float64) * 9), 4, 32],
            "rows of different size": [weight * rows, _exact_inputs(torch.eye(80, dtype=torch.float64)), 4, 32],
            "groups of different size": [weight * groups, _exact_inputs(torch.eye(80, dtype=torch.float64)), 4, 32],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, _, bits, group_size) in inputs.items():
            result = _weight(returned(values[case], case), weight, case)
            weight = weight.double()
            for index, (w, q) in enumerate(zip(weight.split(group_size, 1), result.split(group_size, 1), strict=True)):
                step = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)  # the coarsest symmetric grid's
                error = (q - w).abs()
                if not (error <= step * 1.001).all():
                    row = int((error / step).amax(1).argmax())
                    raise Wrong(
                        f"for {case}, row {row} of group {index} is up to {(error / step).max():.3g} steps off (a "
                        "step is "
                        f"max|w| / {2 ** (bits - 1) - 1} of that row and group): each row and each group needs a "
                        "scale of its own"
                    )
                nearest = (w[:, :, None] - q[:, None, :]).abs().amin(2)
                if not (error <= nearest + 1e-2 * step).all():
                    raise Wrong(
                        f"for {case} (H is a multiple of the identity) no column can make up for another, yet "
                        "weights are not on "
                        f"their nearest level: is H = inputs.T @ inputs, and q rounded to the nearest?"
                    )


class CheckUsesInputs(GPTQCheck):
    name = "check_uses_inputs"
    points = 2
    holds = "the result depends on the inputs, and not on their unit"

    def inputs(self, seed: int) -> dict[str, Any]:
        weight, x, _ = _correlated(seed + 20, 16, 64, 512)
        _, other, _ = _correlated(seed + 21, 16, 64, 512)
        return {
            "some inputs": [weight, x, 4, 32],
            "other inputs": [weight, other, 4, 32],
            "inputs times 16": [weight, x * 16, 4, 32],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        weight = inputs["some inputs"][0]
        some, other, scaled = (_weight(returned(values[case], case), weight, case) for case in inputs)
        if _moved(some, other) < 0.02:
            raise Wrong(
                "the result is the same for different inputs: this is round-to-nearest; pass each column's error "
                "on to the columns "
                "that come after it, weighted by the inputs' H = inputs.T @ inputs (and check that U is upper "
                "triangular)"
            )
        if _moved(some, scaled) > 0.02:  # a small constant damping may flip a few codes
            raise Wrong(
                f"{_moved(some, scaled):.0%} of the weights change when all inputs are multiplied by 16, though "
                "that multiplies every "
                f"output error alike: divide the error by U[j, j], and make the damping a share of H's mean diagonal"
            )


class CheckUpdate(GPTQCheck):
    name = "check_update"
    points = 4
    holds = "each column makes up for the errors of all columns before it, in its own group and in earlier ones"

    FIRST, MIDDLE, LAST, COLUMNS = 0, 16, 31, 32  # three columns that correlate, in two groups of 16

    def _hessian(self) -> Tensor:
        """Correlations 0.8, 0.8, 0.64: given FIRST, the others do not correlate, so H⁻¹ in place of its Cholesky
        factor would pass nothing on from MIDDLE to LAST. The diagonal falls: act-order keeps the order of columns."""
        correlation = torch.eye(self.COLUMNS, dtype=torch.float64)
        for i, k, value in (
            (self.FIRST, self.MIDDLE, 0.8),
            (self.FIRST, self.LAST, 0.8),
            (self.MIDDLE, self.LAST, 0.64),
        ):
            correlation[i, k] = correlation[k, i] = value
        size = torch.linspace(50, 25, self.COLUMNS, dtype=torch.float64).sqrt()
        return correlation * size[:, None] * size

    def inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed + 30)
        weight = torch.randn(1024, self.COLUMNS, generator=generator, dtype=torch.float32)
        return {"three columns that correlate": [weight, _exact_inputs(self._hessian()), 4, 16]}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        ((case, (weight, _, _, _)),) = inputs.items()
        weight, result = weight.double(), _weight(returned(values[case], case), weight, case)
        error, hessian = weight - result, self._hessian()
        earlier = [self.FIRST, self.MIDDLE]
        wanted = hessian[self.LAST, earlier] / hessian[self.LAST, self.LAST]
        slopes = torch.linalg.lstsq(error[:, earlier], -error[:, [self.LAST]]).solution[:, 0] / wanted
        first, middle = slopes.tolist()
        if (slopes - 1).abs().max() <= SLOPE_TOLERANCE:
            return
        if min(first, middle) < -SLOPE_TOLERANCE:
            raise Wrong(
                f"later columns move the wrong way: they add to the errors before them. {FORMULA} (of H⁻¹, not of H)"
            )
        if abs(first) < SLOPE_TOLERANCE and abs(middle - 1) <= SLOPE_TOLERANCE:
            raise Wrong("errors stop at the end of their group: pass them on to the columns of all later groups too")
        if max(abs(first), abs(middle)) < SLOPE_TOLERANCE:
            raise Wrong(
                f"later columns hardly make up for earlier errors (by {first:.2f} and {middle:.2f} of what is "
                f"best). {FORMULA}"
            )
        raise Wrong(
            f"the last column makes up for {first:.2f} and {middle:.2f} of the errors of two earlier ones, where "
            "1 is best: is U the "
            f"Cholesky factor of H⁻¹ (upper), not H⁻¹ itself? {FORMULA}"
        )


class CheckOutputError(GPTQCheck):
    name = "check_output_error"
    points = 5
    holds = "on inputs never seen, the output error is well below round-to-nearest's, as low as GPTQ should get it"

    def inputs(self, seed: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for i, bits in enumerate((4, 3)):
            weight, x, covariance = _correlated(seed + 40 + i, 48, 96, 1024)
            drawn[f"{bits} bits"] = [weight, x, bits, 32]
            drawn[f"_{bits} bits"] = covariance  # the held-out side: it stays with the judge
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case in [key for key in inputs if not key.startswith("_")]:
            weight, x, bits, group_size = inputs[case]
            covariance = inputs[f"_{case}"]
            weight, result = weight.double(), _weight(returned(values[case], case), weight, case)
            error = _output_error(weight, result, covariance)
            nearest = _output_error(weight, _round_to_nearest(weight, bits, group_size), covariance)
            reachable = _output_error(weight, _coarsest_gptq(weight, x, bits, group_size), covariance)
            if not error <= min(ERROR_TOLERANCE * reachable, 0.8 * nearest):
                raise Wrong(
                    f"at {case} the output error on new inputs is {error / nearest:.2f} of round-to-nearest's, "
                    "GPTQ reaches "
                    f"{reachable / nearest:.2f}: is H summed over all rows of inputs, and does each error reach "
                    "every later column?"
                )


class CheckDeadColumns(GPTQCheck):
    name = "check_dead_columns"
    points = 2
    holds = "dead columns, and fewer inputs than columns, still give a finite weight that beats round-to-nearest's"

    def inputs(self, seed: int) -> dict[str, Any]:
        weight, x, _ = _correlated(seed + 50, 16, 64, 512)
        dead = x.clone()
        dead[:, [3, 40, 41]] = 0
        return {
            "inputs with three columns of zeros": [weight, dead, 4, 32],
            "20 inputs for 64 columns": [weight, x[::26].clone(), 4, 32],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, x, bits, group_size) in inputs.items():
            hint = (
                "H is singular there: put 1 on the diagonal of dead columns and add 1 % of the mean diagonal (damping)"
            )
            result = _weight(returned(values[case], case, hint), weight, case, hint)
            weight, seen = weight.double(), x.double().T @ x.double()
            nearest = _output_error(weight, _round_to_nearest(weight, bits, group_size), seen)
            error = _output_error(weight, result, seen)
            if not error <= 0.8 * nearest:
                raise Wrong(
                    f"for {case} the output error on those very inputs is {error / nearest:.2g} of "
                    f"round-to-nearest's; {hint}"
                )


# What the checks share ------------------------------------------------------------------------------------------------


def _weight(value: Plain, weight: Tensor, case: str, hint: str = "") -> Tensor:
    """The returned weight in float64, or `Wrong`."""
    name = f"for {case}, the result"
    if isinstance(value, Tensor) and not value.is_floating_point():
        raise Wrong(
            f"{name} must be the dequantized weight, floats (q - zero_point) * scale, not codes; got {describe(value)}"
        )
    result = float_tensor(value, name)
    if result.shape != weight.shape:
        raise Wrong(f"{name} must have the weight's shape {list(weight.shape)}; got {list(result.shape)}")
    if not result.isfinite().all():
        raise Wrong(f"{name} has NaN or inf in it{hint and ': '}{hint}")
    return result


def _most_levels(result: Tensor, group_size: int) -> tuple[int, tuple[int, int]]:
    """The largest number of different values in a row and group, and where. Values that differ by 1e-5 of the group's
    range are one level: (q - z) * s and q * s - z * s round differently."""
    most, where = 0, (0, 0)
    for group, columns in enumerate(result.split(group_size, 1)):
        ordered = columns.sort(1).values
        span = (ordered[:, -1:] - ordered[:, :1]).clamp(min=1e-30)
        levels = (ordered.diff(dim=1) > 1e-5 * span).sum(1) + 1
        if levels.max() > most:
            most, where = int(levels.max()), (int(levels.argmax()), group)
    return most, where


def _moved(a: Tensor, b: Tensor) -> float:
    """Share of weights that differ."""
    return float(((a - b).abs() > 1e-4 * a.abs().mean()).double().mean())


def _exact_inputs(hessian: Tensor) -> Tensor:
    """Inputs whose inputs.T @ inputs is ``hessian`` times a factor, with no sampling noise."""
    lower = torch.linalg.cholesky(hessian)
    return torch.cat([lower.T, -lower.T]).float()


def _correlated(seed: int, out: int, columns: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs, and the true covariance of such inputs. They come from two sources, one after the other, each
    with a spectrum that falls as k^-2.5, so that whoever looks at a part of the rows knows one source only."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = normal(out, columns)
    sources = [
        3
        * torch.arange(1, columns + 1, dtype=torch.float64)[:, None] ** -1.25
        * torch.linalg.qr(normal(columns, columns))[0]
        for _ in range(2)
    ]
    inputs = torch.cat([normal(rows // 2, columns) @ mix for mix in sources])
    covariance = torch.stack([mix.T @ mix for mix in sources]).mean(0)
    return weight.float(), inputs.float(), covariance


# Oracles, in float64 --------------------------------------------------------------------------------------------------


def _output_error(weight: Tensor, result: Tensor, covariance: Tensor) -> float:
    """E ||x dWᵀ||² for inputs x of that covariance."""
    delta = result - weight
    return float(((delta @ covariance) * delta).sum())


def _round_to_nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """On the finer, asymmetric grid."""
    groups = []
    for w in weight.split(group_size, 1):
        low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        zero_point = (-low / scale).round()
        groups.append((((w / scale).round() + zero_point).clamp(0, 2**bits - 1) - zero_point) * scale)
    return torch.cat(groups, 1)


def _coarsest_gptq(weight: Tensor, inputs: Tensor, bits: int, group_size: int) -> Tensor:
    """GPTQ on codes ±(2^(bits-1) - 1) with 5 % damping: of all right variants the one with the largest error."""
    weight, largest_code = weight.clone(), 2 ** (bits - 1) - 1
    hessian = inputs.double().T @ inputs.double()
    hessian += 0.05 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    for j in range(weight.shape[1]):
        if j % group_size == 0:
            scale = weight[:, j : j + group_size].abs().amax(1) / largest_code
        rounded = (weight[:, j] / scale).round().clamp(-largest_code, largest_code) * scale
        error = (weight[:, j] - rounded) / factor[j, j]
        weight[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
        weight[:, j] = rounded
    return weight


check_levels, check_grid, check_uses_inputs = CheckLevels(), CheckGrid(), CheckUsesInputs()
check_update, check_output_error, check_dead_columns = CheckUpdate(), CheckOutputError(), CheckDeadColumns()

EXERCISE = Exercise(
    name="ex04_gptq",
    checks=(check_levels, check_grid, check_uses_inputs, check_update, check_output_error, check_dead_columns),
)
