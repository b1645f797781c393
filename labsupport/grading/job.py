"""One submission: all that a worker needs to grade it (`Job`), and the grading (`grade_one`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from labsupport import __version__
from labsupport.checks import Check, Exercise, Verdict, exercise
from labsupport.checks.plain import decode, encode
from labsupport.checks.visited import VisitedCheck
from labsupport.grading.intake.helpers import why_missing
from labsupport.grading.intake.notebook import InvalidNotebook, Submission, read_submission
from labsupport.grading.reports.results import CheckResult, Row, fingerprint, one_line
from labsupport.grading.sandbox.limits import WALL, Limits
from labsupport.grading.sandbox.shared import close_warm_processes, warm_process
from labsupport.grading.sandbox.visitor import Visit
from labsupport.grading.sandbox.warm import Outcome, SandboxError, WarmProcess

__all__ = ["Job", "close_warm_processes", "digest", "grade_one", "is_current", "warm_process"]

# Python's own MemoryError has no message; one that an answer raises on purpose usually has one
_OUT_OF_MEMORY = re.compile(r"raised MemoryError(?!:)|ArrayMemoryError|can't allocate memory|not enough memory")


@dataclass(frozen=True)
class Job:
    """Plain data, which can be sent to another machine."""

    student: str
    exercise: str
    data: bytes  # the notebook as handed in
    pristine: bytes  # the exercise as released
    seed: int
    timeout: float = 60.0
    unsafe_no_sandbox: bool = False
    hidden: tuple[str, ...] = ()  # folders that the sandbox must not show: the course, submissions, grades


def grade_one(job: Job, watch: Callable[[str], None] | None = None) -> Row:
    """Grade one submission in a sandbox. Nothing that a student can do makes it raise.

    Args:
        watch: called with the name of each check when the sandbox begins with it.

    Raises:
        SandboxError: no isolation works on this machine (see `warm.WarmProcess`).
    """
    graded = exercise(job.exercise)
    blank = Row(
        job.student, job.exercise, 0, graded.points, "error", "",
        seed_fingerprint=fingerprint(job.seed), version=__version__, digest=digest(job.data),
        exercise_digest=digest(job.pristine),
    )  # fmt: skip
    try:
        submission = read_submission(job.data, job.pristine)
    except InvalidNotebook as problem:
        message = one_line(f"not a notebook that can be graded: {problem}")
        return replace(blank, status="invalid notebook", message=message, checks=_no_points(graded, message))
    blank = replace(blank, notes=submission.notes, answers=submission.answers)
    if not submission.attempted:
        message = "not attempted yet: the answer cells are as they were given out"
        return replace(blank, status="not attempted", message=message, checks=_no_points(graded, message, False))
    warm = warm_process(job.hidden, job.unsafe_no_sandbox)
    try:
        run = _Run(warm, job, graded, submission, watch)
    except SandboxError as problem:
        message = one_line(f"the grader's sandbox failed, the submission was not graded: {problem}")
        return replace(blank, message=message, isolation=warm.level, checks=_no_points(graded, message))
    return run.row(blank)


def digest(data: bytes) -> str:
    """The SHA-256 of a notebook's bytes."""
    return hashlib.sha256(data).hexdigest()


def is_current(row: Row, job: Job) -> bool:
    """Whether grading ``job`` again would give the same row."""
    wanted = (digest(job.data), digest(job.pristine), fingerprint(job.seed), __version__)
    return (row.digest, row.exercise_digest, row.seed_fingerprint, row.version) == wanted and row.status != "error"


class _Run:
    """The runs of one submission: usually one, and one more for each run that a check cut short."""

    def __init__(
        self,
        warm: WarmProcess,
        job: Job,
        graded: Exercise,
        submission: Submission,
        watch: Callable[[str], None] | None = None,
    ) -> None:
        self.graded, self.submission, self.level = graded, submission, warm.level
        self.values: dict[int, bytes] = {}
        self.failures: dict[int, tuple[str, str]] = {}  # index of a check -> status, why
        self.cell_errors: dict[str, str] = {}
        self.seconds = self.cpu_seconds = self.memory_bytes = 0.0
        encoded, self.inputs = _draw(job.exercise, job.seed)
        left = list(range(len(graded.checks)))
        while left and self.cpu_seconds < job.timeout and self.seconds < WALL * job.timeout:
            seconds = min(job.timeout - self.cpu_seconds, job.timeout - self.seconds / WALL)
            limits = Limits(seconds, min(seconds, max(job.timeout / 3, 1.0)), WALL)
            visits = {i: self._visit(i) for i in left if isinstance(graded.checks[i], VisitedCheck)}
            shown = {i: b"" if i in visits else encoded[i] for i in left}
            seen = None if watch is None else lambda i: watch(graded.checks[i].name) if i in encoded else None
            outcome = warm.run(submission.cells, job.exercise, shown, limits, visits, seen)
            left = self._take(outcome, left)
        for index in left:
            self.failures[index] = (
                "timeout",
                f"no time was left for it within {job.timeout:g} s, which other checks took",
            )

    def _visit(self, index: int) -> Visit:
        check, inputs = self.graded.checks[index], self.inputs[index]
        return lambda channel, hello: check.receive(channel, inputs, hello)  # type: ignore[attr-defined]

    def _take(self, outcome: Outcome, wanted: list[int]) -> list[int]:
        """Record the results of the checks; return those that a fresh run may still get to."""
        self.seconds += outcome.seconds
        self.cpu_seconds += outcome.cpu_seconds
        self.memory_bytes = max(self.memory_bytes, outcome.memory_bytes)
        for position, error in outcome.cells.items():
            if error is not None and position < len(self.submission.cells):
                self.cell_errors[self.submission.cells[position][0]] = one_line(error, 200)
        for index in wanted:
            if index in outcome.values:
                self.values[index] = outcome.values[index]
            elif index in outcome.failures:
                self.failures[index] = _failure_of(outcome.failures[index])
        left = [index for index in wanted if index not in self.values and index not in self.failures]
        if outcome.done and not outcome.ended:  # it claims to be done: what it did not send does not exist
            for index in left:
                self.failures[index] = ("exited", "your code kept it from running")
            return []
        reached = [index for index in left if index in outcome.started]
        cause = _cause(outcome)
        if not reached:  # a cell of the notebook ended it, and would again
            running = self.submission.cells[len(outcome.cells) : len(outcome.cells) + 1]
            where = f"while cell {running[0][0]} ran" if running else "while its cells ran"
            self.failures |= dict.fromkeys(left, (cause[0], one_line(f"{cause[1]}, {where}")))
            return []
        self.failures[reached[0]] = cause
        return [index for index in left if index != reached[0]]

    def row(self, blank: Row) -> Row:
        results = tuple(self._result(index, check) for index, check in enumerate(self.graded.checks))
        score = sum(result.points for result in results)
        failed = [result for result in results if not result.passed]
        if not failed:
            status, message = "ok", f"all {len(results)} checks hold"
        elif not any(result.attempted for result in results) and not self.cell_errors:
            status, message = "not attempted", failed[0].message
        else:
            status, message = self._status(failed), self._message(failed)
        return replace(
            blank, score=score, status=status, message=message, checks=results, isolation=self.level,
            seconds=round(self.seconds, 3), cpu_seconds=round(self.cpu_seconds, 3),
            memory_mb=round(self.memory_bytes / 2**20, 1),
        )  # fmt: skip

    def _result(self, index: int, check: Check) -> CheckResult:
        if index in self.values:
            verdict = _judge(check, self.inputs[index], self.values[index])
        else:
            verdict = Verdict(False, f"✗ {check.name} (0 of {check.points} points): {self.failures[index][1]}", 0)
        message = one_line(verdict.message)
        attempted = verdict.attempted
        if not attempted and self.cell_errors and "there is no function" in message:
            message, attempted = one_line(because_of(message, self.submission, self.cell_errors)), True
        own = self.submission.own
        failed = [(*own[name], error) for name, error in self.cell_errors.items() if name in own]
        if why := why_missing(message, self.submission.left_out, failed):
            message = one_line(f"{message}; {why}")
        return CheckResult(check.name, verdict.points, check.points, verdict.passed, message, attempted)

    def _status(self, failed: list[CheckResult]) -> str:
        found = [status for status, _ in self.failures.values()]
        if any(_OUT_OF_MEMORY.search(result.message) for result in failed):
            found.append("memory")
        return next((s for s in ("timeout", "memory", "exited", "output limit") if s in found), "failed")

    def _message(self, failed: list[CheckResult]) -> str:
        attempted = [result for result in failed if result.attempted]
        return (attempted or failed)[0].message


def because_of(message: str, submission: Submission, cell_errors: Mapping[str, str]) -> str:
    """A message that a function is missing, with what the cells that should define it ended with."""
    ended = {name: f"cell {name} ended with {error}" for name, error in cell_errors.items()}
    ended |= {name: f"cell {name} has a syntax error in {why}" for name, why in submission.syntax_errors.items()}
    return f"{message.partition(': run the answer cell')[0]}; {'; '.join(ended.values())}"


def _judge(check: Check, inputs: Mapping[str, Any], data: bytes) -> Verdict:
    """The verdict, reached outside of the sandbox, on untrusted values."""
    try:
        values = decode(data)
    except (ValueError, MemoryError):
        return Verdict(False, f"✗ {check.name} (0 of {check.points} points): what your code returned cannot be read", 0)
    return check.verdict(inputs, values)


def _failure_of(why: str) -> tuple[str, str]:
    return ("memory" if _OUT_OF_MEMORY.search(why) else "failed"), one_line(why, 200)


def _cause(outcome: Outcome) -> tuple[str, str]:
    """Status and reason of a run that was cut short."""
    if outcome.ended:
        call = f" in {one_line(outcome.calling, 150)}" if outcome.calling else ""
        return {
            "timeout": ("timeout", f"your code took too long{call}: it computed until its time was over"),
            "asleep": ("timeout", f"your code took too long{call}: it hardly computed, and waited for something"),
            "memory": ("memory", "your code took too much memory"),
            "output": ("output limit", "your code printed too much"),
            "result": ("output limit", "your code sent too much"),
            "disk": ("output limit", "your code wrote too many bytes to the disk"),
            "processes": ("memory", "your code started too many processes"),
        }[outcome.ended]
    if outcome.exit_code < 0:
        return "exited", f"your code ended its own process (signal {-outcome.exit_code})"
    return "exited", f"your code ended its own process (exit code {outcome.exit_code})"


def _no_points(graded: Exercise, why: str, attempted: bool = True) -> tuple[CheckResult, ...]:
    return tuple(
        CheckResult(
            check.name, 0, check.points, False, f"✗ {check.name} (0 of {check.points} points): {why}", attempted
        )
        for check in graded.checks
    )


@lru_cache(maxsize=32)
def _draw(name: str, seed: int) -> tuple[dict[int, bytes], dict[int, dict[str, Any]]]:
    """The inputs of every check: encoded for the sandbox without the private ones, and whole.

    Both are shared between submissions: `Check.verdict` does not change them.
    """
    drawn = {index: check.inputs(seed) for index, check in enumerate(exercise(name).checks)}
    shown = {index: {k: v for k, v in inputs.items() if not k.startswith("_")} for index, inputs in drawn.items()}
    return {index: encode(inputs) for index, inputs in shown.items()}, drawn
