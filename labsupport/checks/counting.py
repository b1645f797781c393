"""For exercises whose answers are integers: exact comparison, and recognition of the usual mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
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
    factors: Mapping[str, Count] | None = None,
) -> None:
    """Raise `Wrong` unless the ``function`` returned what ``right`` returns for the arguments of each case.

    ``mistakes`` maps a text to the formula that makes this mistake. The text is shown only if the formula explains what
    came back in all cases, so that one value that agrees by chance does not mislead. What no formula explains is shown
    by the case with the smallest result.

    Where ``right`` is a product, ``factors`` maps a name to each factor's value for the arguments: then products with
    factors missing, repeated, exchanged or held constant are recognized too.
    """
    got = {case: integer(returned(values[case], case), function, case) for case in cases}
    wrong = [case for case, arguments in cases.items() if got[case] != right(*arguments)]
    if not wrong:
        return
    products = {**_missing_factors(right, factors), **_other_factors(right, factors)} if factors else {}
    for text, mistake in {**mistakes, **products}.items():
        if all(got[case] == mistake(*arguments) for case, arguments in cases.items()):
            raise Wrong(f"for {wrong[0]}, {function} returned {got[wrong[0]]}, not {right(*cases[wrong[0]])}: {text}")
    first = min(wrong, key=lambda case: abs(right(*cases[case])))
    text = _in_common([(got[case], right(*arguments)) for case, arguments in cases.items()]) or next(
        (f"{number} stands where {name} belongs" for name, factor in (factors or {}).items()
         if (number := _instead([(got[case], right(*a), factor(*a)) for case, a in cases.items()])) is not None),
        lost_digits(got[first], right(*cases[first])),
    )  # fmt: skip
    raise Wrong(f"for {first}, {function} returned {got[first]}, not {right(*cases[first])}{text and ': '}{text}")


def _in_common(pairs: Sequence[tuple[int, int]]) -> str:
    """What holds of all (value that came back, right value), or nothing."""
    if len(pairs) < 2 or any(wanted == 0 for _, wanted in pairs):
        return ""
    ratios, differences = {Fraction(value, wanted) for value, wanted in pairs}, {got - right for got, right in pairs}
    if len(ratios) == 1 and (ratio := ratios.pop()) > 0:
        return f"that is {ratio} times as much, in every case"
    if len(differences) == 1:
        return f"that is {differences.pop():+} in every case"
    return ""


def _instead(triples: Sequence[tuple[int, int, int]]) -> Fraction | None:
    """The number in place of a factor, from all (value that came back, right value, factor)."""
    if len({factor for _, _, factor in triples}) < 2 or any(wanted == 0 for _, wanted, _ in triples):
        return None
    numbers = {Fraction(value * factor, wanted) for value, wanted, factor in triples}
    return numbers.pop() if len(numbers) == 1 else None


def lost_digits(value: int, right: int) -> str:
    """Why ``value`` is not exactly ``right``: floats, 64 bits, or "" for another cause."""
    if abs(value - right) * 10**6 <= abs(right):
        return "floats are exact only up to 2**53; Python's int has no limit"
    for bits in (64, 32):
        if (value - right) % 2**bits == 0 and -(2 ** (bits - 1)) <= value < 2**bits:
            return f"that is what {bits} bits leave of it; integers of numpy and torch only up to 2**{bits - 1} are " \
                   "exact, Python's int has no limit"  # fmt: skip
    return ""


def _missing_factors(right: Count, factors: Mapping[str, Count]) -> dict[str, Count]:
    """Mistakes: two or more ``factors`` of the product are missing. They map a name to its value for the arguments."""
    found: dict[str, Count] = {}
    for size in range(2, len(factors)):
        for names in combinations(factors, size):
            kept = [name for name in factors if name not in names]
            text = f"{', '.join(names[:-1])} and {names[-1]} are missing"
            if size > 2:
                text = f"that is {' * '.join(kept)} alone; {text}"
            found[text] = _divided(right, [factors[name] for name in names])
    return found


def _other_factors(right: Count, factors: Mapping[str, Count]) -> dict[str, Count]:
    """Mistakes: a factor comes twice, the second time in the place of another, or on top."""
    found: dict[str, Count] = {}
    for name, factor in factors.items():
        found[f"{name} is a factor once too often"] = lambda *a, factor=factor: right(*a) * factor(*a)
        for other, replaced in factors.items():
            if other != name:
                found[f"{name} stands where {other} belongs"] = lambda *a, factor=factor, replaced=replaced: (
                    right(*a) // replaced(*a) * factor(*a)
                )
    return found


def _divided(right: Count, factors: Sequence[Count]) -> Count:
    def value(*arguments: int) -> int:
        result = right(*arguments)
        for factor in factors:
            result //= factor(*arguments)
        return result

    return value


def spelled(names: Sequence[str], arguments: Sequence[int]) -> str:
    """The name of a case: "batch_size=3, seq_len=700"."""
    return ", ".join(f"{name}={argument}" for name, argument in zip(names, arguments, strict=False))
