"""What grading with the public seed says of one's own notebook, for `labsupport check` and `labsupport progress`.

The grader is the one that grades a class (`job.grade_one`). Where no sandbox works (macOS, Windows, many containers),
the cells run in this process instead, as the code is the student's own, and a note says so. Never use it on someone
else's notebook.

Torch takes seconds to import, so it is imported only when something runs, while the sandbox starts beside it. A row is
kept under a hash of all that it depends on, the cells that run and the package, so that nothing runs twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import labsupport
from labsupport.checks.lookup import exercise, exercises
from labsupport.files import write_atomically
from labsupport.grading.handed_out import pristine_of
from labsupport.grading.intake.notebook import InvalidNotebook, read_submission
from labsupport.grading.reports.results import CheckResult, Results, Row, fingerprint, one_line

if TYPE_CHECKING:
    from labsupport.grading.job import Job

IN_PROCESS = "none: the cells ran in this process, as no sandbox works here"
ME = "me"  # the only student in one's own results
Say = Callable[[str], None]  # told what is being done, one line at a time


def check_own(
    path: Path, timeout: float = 60.0, cache: Path | None = None, again: bool = False, say: Say = lambda line: None
) -> Row:
    """Grade one notebook with the public seed.

    Args:
        timeout: seconds that the notebook may take.
        cache: where rows are kept; a notebook whose answers have not changed is not run again.
        again: run it all the same.
        say: told what is being done.

    Raises:
        ValueError: the file cannot be read, or its name does not tell the exercise.
    """
    name = exercise_of(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    pristine = pristine_of(path, name)
    state = _state(data, pristine, timeout)
    results = Results(cache) if cache is not None else None
    known = results.load(ME, name) if results is not None and not again else None
    if known is not None and known.digest == state and known.status != "error":
        say(f"{name}: not run again, since nothing in it has changed")
        return known
    row = replace(_run(name, data, pristine, timeout, say), digest=state)
    if results is not None:
        results.save(row)
    return row


def progress(folder: Path, cache: Path | None = None, say: Say = lambda line: None) -> list[tuple[str, Row | None]]:
    """Every exercise of the course with the row of its notebook in ``folder``, None if there is none."""
    found = {exercise_of(path): path for path in sorted(folder.glob("*.ipynb")) if _is_exercise(path)}
    return [(name, check_own(found[name], cache=cache, say=say) if name in found else None) for name in exercises()]


def points_of_exercises(cache: Path | None = None) -> dict[str, int]:
    """The points of every exercise; kept, since asking the checks means importing torch."""
    file = None if cache is None else cache / f"points-{_package_state()[:16]}.json"
    if file is not None:
        with contextlib.suppress(OSError, ValueError):
            return {str(name): int(points) for name, points in json.loads(file.read_bytes()).items()}
    found = {name: exercise(name).points for name in exercises()}
    if file is not None:
        write_atomically(file, json.dumps(found))
    return found


def exercise_of(path: Path) -> str:
    """The exercise with which a file's name begins, as in "ex04_gptq (1).ipynb" or "ex04.ipynb".

    Raises:
        ValueError: there is none.
    """
    for name in exercises():
        if re.match(rf"(?i){re.escape(name)}|{name.partition('_')[0]}(?!\d)", path.stem):
            return name
    raise ValueError(f"the file's name must begin with one of {', '.join(exercises())}, got {path.name}")


def _state(data: bytes, pristine: bytes, timeout: float) -> str:
    """A hash of all that the row depends on: what runs of the notebook, what is said about it, and the package."""
    try:
        read = read_submission(data, pristine)
        what: object = (read.cells, read.notes)
    except InvalidNotebook as problem:
        what = str(problem)
    return hashlib.sha256(json.dumps([what, timeout, _package_state()]).encode()).hexdigest()


@cache
def _package_state() -> str:
    found = hashlib.sha256(f"{sys.version} {version('torch')} {labsupport.__version__}".encode())
    for path in sorted(Path(labsupport.__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def _run(name: str, data: bytes, pristine: bytes, timeout: float, say: Say) -> Row:
    say(f"{name}: starting Python in a sandbox, with PyTorch in it")
    _start_early()
    from labsupport.checks.check import PUBLIC_SEED
    from labsupport.grading.job import Job, grade_one
    from labsupport.grading.sandbox.warm import SandboxError

    job = Job(ME, name, data, pristine, PUBLIC_SEED, timeout)
    try:
        return grade_one(job, lambda check: say(f"{name}: {check}"))
    except (SandboxError, ImportError) as error:  # ImportError: a system without fork or resource limits
        say(f"{name}: no sandbox works here, so your cells run in this process")
        row = _grade_in_process(job)
        return replace(row, notes=(f"not in a sandbox: {one_line(str(error))}", *row.notes))


def _start_early() -> None:
    """Have the sandbox import torch while this process does. What fails here fails again in `grade_one`."""

    def start() -> None:
        with contextlib.suppress(Exception):
            from labsupport.grading.sandbox.shared import warm_process

            warm_process()

    threading.Thread(target=start, daemon=True).start()


def _grade_in_process(job: Job) -> Row:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    from labsupport.grading.job import because_of, digest
    from labsupport.grading.sandbox.kernel import run_cell

    graded = exercise(job.exercise)
    blank = Row(
        job.student, job.exercise, 0, graded.points, "invalid notebook", "", isolation=IN_PROCESS,
        digest=digest(job.data), seed_fingerprint=fingerprint(job.seed), version=labsupport.__version__,
    )  # fmt: skip
    try:
        submission = read_submission(job.data, job.pristine)
    except InvalidNotebook as problem:
        return replace(blank, message=one_line(f"not a notebook that can be graded: {problem}"))
    quiet = Config()
    quiet.HistoryManager.enabled = False  # writes nothing into ~/.ipython
    shell = InteractiveShell(user_ns={"__name__": "__main__"}, config=quiet)
    with capture_output():
        ended = {name: error for name, source in submission.cells if (error := run_cell(shell, source))}
    checks = []
    for check, v in zip(graded.checks, graded.grade(shell.user_ns, job.seed).values(), strict=True):
        message, attempted = v.message, v.attempted
        if not attempted and ended and "there is no function" in message:
            message, attempted = because_of(message, submission, ended), True
        checks.append(CheckResult(check.name, v.points, check.points, v.passed, one_line(message), attempted))
    return _with_outcome(replace(blank, notes=submission.notes), tuple(checks))


def _with_outcome(blank: Row, checks: tuple[CheckResult, ...]) -> Row:
    failed = [check for check in checks if not check.passed]
    attempted = [check for check in failed if check.attempted]
    score = sum(check.points for check in checks)
    if not failed:
        return replace(blank, score=score, status="ok", message=f"all {len(checks)} checks hold", checks=checks)
    status = "failed" if attempted or len(failed) < len(checks) else "not attempted"
    return replace(blank, score=score, status=status, message=(attempted or failed)[0].message, checks=checks)


def _is_exercise(path: Path) -> bool:
    try:
        return bool(exercise_of(path))
    except ValueError:
        return False
