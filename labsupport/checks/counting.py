"""For exercises whose answers are integers: exact comparison, and recognition of the usual mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain, describe

Count = Callable[..., int]


def integer(value: Plain, function: str, case: str) -> int:
    """``value`` if it is an int, or `Wrong`."""
    if type(value) is float:
        raise Wrong(
            f"for {case}, {function} must return an int; got {describe(value)}: use // and whole numbers throughout, "
            "floats lose digits above 2**53"
        )
    if type(value) is not int:
        raise Wrong(f"for {case}, {function} must return an int; got {describe(value)}")
    return value


def judge_counts(
    function: str,
    cases: Mapping[str, Sequence[int]],
    values: Mapping[str, Any],
    right: Count,
    mistakes: Mapping[str, Count],
) -> None:
    """Raise `Wrong` unless the ``function`` returned what ``right`` returns for the arguments of each case.

    ``mistakes`` maps a text to the formula that makes this mistake. The text is shown only if the formula explains what
    came back in all cases, so that one value that agrees by chance does not mislead.
    """
    got = {case: integer(returned(values[case], case), function, case) for case in cases}
    wrong = [case for case, arguments in cases.items() if got[case] != right(*arguments)]
    if not wrong:
        return
    first = wrong[0]
    found = f"for {first}, {function} returned {got[first]}, not {right(*cases[first])}"
    for text, mistake in mistakes.items():
        if all(got[case] == mistake(*arguments) for case, arguments in cases.items()):
            raise Wrong(f"{found}: {text}")
    raise Wrong(found)


def spelled(names: Sequence[str], arguments: Sequence[int]) -> str:
    """The name of a case: "batch_size=3, seq_len=700"."""
    return ", ".join(f"{name}={argument}" for name, argument in zip(names, arguments, strict=False))
