"""What a check and an exercise are: `Check`, its `Verdict`, and `Exercise`, the checks of one notebook."""

from __future__ import annotations

import contextlib
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any, TypeAlias

from labsupport.checks import history
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain

PUBLIC_SEED = 2024  # the notebooks' seed; grading uses seeds of the instructor's own

Answer: TypeAlias = Mapping[str, Callable[..., Any]]  # the student's functions by name
Inputs: TypeAlias = Mapping[str, Any]


class CheckFailed(AssertionError):
    """A check does not hold; the message says why, in one line."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class NotAttempted(CheckFailed):
    """The answer cell still holds its `raise NotImplementedError`."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check: `points` is what the answer earned, `message` one line."""

    passed: bool
    message: str
    points: float
    attempted: bool = True


class Check(ABC):
    """One property of an answer. A subclass sets the four attributes and writes `inputs`, `run` and `judge`."""

    name: str  # as the student calls it: "check_scale"
    needs: tuple[str, ...]  # the student's functions, in the order in which the check takes them
    points: int
    holds: str  # what is true of an answer that passes; the same for every such answer, since nbval compares it

    @abstractmethod
    def inputs(self, seed: int) -> dict[str, Any]:
        """Draw the arguments of the student's functions, as plain values. The same seed gives the same values."""

    @abstractmethod
    def run(self, answer: Mapping[str, Callable[..., Any]], inputs: Mapping[str, Any]) -> Plain:
        """Call the student's functions through `plain.call`, and return plain values. Uses no oracle."""

    @abstractmethod
    def judge(self, inputs: Mapping[str, Any], values: Any) -> None:
        """Raise `Wrong` unless ``values``, which may come from an untrusted process, are those of a right answer."""

    def observe(self, namespace: Mapping[str, Any], inputs: Mapping[str, Any]) -> Plain:
        """`run` with the functions of ``namespace``; what they print, warn or display is dropped."""
        missing = [name for name in self.needs if not callable(namespace.get(name))]
        if missing:
            return {"missing": missing[0]}
        shown = {key: value for key, value in inputs.items() if not key.startswith("_")}
        with silence():
            return self.run({name: namespace[name] for name in self.needs}, shown)

    def verdict(self, inputs: Mapping[str, Any], values: Any) -> Verdict:
        """Judge what `observe` returned. Never raises: nonsensical values are a wrong answer."""
        try:
            if isinstance(values, dict) and "missing" in values:
                raise Wrong(
                    f"there is no function {values['missing']}: run the answer cell that defines it", attempted=False
                )
            if isinstance(values, dict) and "malformed" in values:
                raise Wrong("your code wrote something into the check's channel that is no message")
            self.judge(inputs, values)
        except Wrong as wrong:
            return Verdict(False, self._failed(str(wrong)), 0, wrong.attempted)
        except Exception as error:  # only for values that `run` cannot have returned
            return Verdict(
                False, f"✗ {self.name}: the values returned cannot be judged ({type(error).__name__}: {error})", 0
            )
        return Verdict(True, f"✓ {self.name} ({self.points} of {self.points} points): {self.holds}", self.points)

    def __call__(self, *functions: Callable[..., Any], seed: int = PUBLIC_SEED) -> None:
        """What a check cell does: all three parts in this process, then one line printed or `CheckFailed` raised."""
        if len(functions) != len(self.needs):
            raise TypeError(f"call it as {self.name}({', '.join(self.needs)})")
        own = [name for name, given in zip(self.needs, functions, strict=True) if _named(given, name)]
        if (unread := history.unread_cell(own)) is not None:
            raise CheckFailed(self._failed(unread))  # what an older cell defined is not what the student has written
        inputs = self.inputs(seed)
        verdict = self.verdict(inputs, self.observe(dict(zip(self.needs, functions, strict=True)), inputs))
        if not verdict.passed and not verdict.attempted:
            elsewhere = history.misplaced(own, type(self).__module__.removeprefix("labsupport.checks.").split(".")[0])
            raise NotAttempted(self._failed(elsewhere) if elsewhere else verdict.message)
        if not verdict.passed:
            raise CheckFailed(verdict.message)
        print(verdict.message + "\n", end="")  # one write: a kernel may publish two writes as two outputs

    def _failed(self, why: str) -> str:
        return f"✗ {self.name} (0 of {self.points} points): {why}"


@dataclass(frozen=True)
class Exercise:
    """The checks of one notebook, in the order of its cells."""

    name: str  # of the notebook, without .ipynb
    checks: tuple[Check, ...]

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)

    def grade(self, namespace: Mapping[str, Any], seed: int = PUBLIC_SEED) -> dict[str, Verdict]:
        """Every check's verdict on the functions of ``namespace``, all in this process, without isolation."""
        drawn = {check.name: check.inputs(seed) for check in self.checks}
        return {c.name: c.verdict(drawn[c.name], c.observe(namespace, drawn[c.name])) for c in self.checks}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what is printed, warned or displayed: an answer that prints may be right, and nbval compares output."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        if shell is None:
            stack.enter_context(contextlib.redirect_stdout(StringIO()))
            stack.enter_context(contextlib.redirect_stderr(StringIO()))
        else:
            from IPython.utils.capture import capture_output

            stack.enter_context(capture_output())
        yield


def _named(given: object, name: str) -> bool:
    """Whether this is the student's own function of this name, and not another one that is tried out."""
    return getattr(given, "__name__", None) == name
