"""What every `Check.judge` needs: read the outcome of a call, and convert what it returned, or raise `Wrong`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from labsupport.checks.plain import Plain, describe


class Wrong(Exception):
    """Raised by `Check.judge`: why the answer is wrong, in one line, for the student to read."""

    def __init__(self, message: str, attempted: bool = True) -> None:
        super().__init__(message)
        self.attempted = attempted


def returned(outcome: Mapping[str, Any], case: str, hint: str = "") -> Plain:
    """What the call returned.

    Raises:
        Wrong: it raised an exception. ``case`` says what it was given, ``hint`` what often causes an error there.
    """
    if "raised" not in outcome:
        return outcome["returned"]
    error = outcome["raised"]
    if error["not_attempted"]:
        raise Wrong("not attempted yet: fill in the answer cell above", attempted=False)
    code = f": {error['code']}" if error["code"] else ""
    where = f" (line {error['line']} of its cell{code})" if error["line"] else ""
    cause = f"{error['type']}: {error['message']}".removesuffix(": ")
    raise Wrong(f"for {case} your code raised {cause}{where}{hint and '; '}{hint}")


def unchanged(outcome: Mapping[str, Any], case: str, *arguments: str) -> None:
    """Raise `Wrong` if the call wrote into one of its ``arguments`` (their names in order)."""
    for position in outcome["changed"]:
        raise Wrong(f"for {case} your code changed its argument {arguments[position]} in place: work on a copy")


def pair(value: Plain, function: str, names: str) -> tuple[Plain, Plain]:
    """The two values of a returned pair, or `Wrong`."""
    if not isinstance(value, list) or len(value) != 2:
        raise Wrong(f"{function} must return two values, {names}; it returned {describe(value)}")
    return value[0], value[1]


def float_tensor(value: Plain, name: str) -> Tensor:
    """``value`` as a float64 tensor if it is a floating-point tensor, a float or an int, or `Wrong`."""
    if type(value) in (int, float):
        return torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor):
        raise Wrong(f"{name} must be a float tensor; got {describe(value)}")
    if not value.is_floating_point():
        raise Wrong(f"{name} must be of a floating-point type; got {describe(value)}")
    return value.double()
