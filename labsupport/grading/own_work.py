"""What grading with the public seed says of one's own notebook, for `labsupport check` and `labsupport progress`.

The grader is the one that grades a class (`job.grade_one`). Where no sandbox works (macOS, Windows, many containers),
the cells run in this process instead, as the code is the student's own, and a note says so. Never use it on someone
else's notebook.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from labsupport import __version__
from labsupport.checks import PUBLIC_SEED, exercise, exercises
from labsupport.grading.intake.notebook import Submission
from labsupport.grading.job import Job, digest, grade_one
from labsupport.grading.reports.csv_safe import points
from labsupport.grading.reports.results import CheckResult, Results, Row, fingerprint, one_line
from labsupport.grading.stubs import STUB, make_exercise, read_answers, read_notebook, to_text

IN_PROCESS = "none: the cells ran in this process, as no sandbox works here"
ME = "me"  # the only student in one's own results


def check_own(path: Path, timeout: float = 60.0) -> Row:
    """Grade one notebook with the public seed.

    Raises:
        ValueError: the file cannot be read, or its name does not tell the exercise.
    """
    name = exercise_of(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    job = Job(ME, name, data, pristine_of(path, name), PUBLIC_SEED, timeout)
    from labsupport.grading.sandbox.warm import SandboxError

    try:
        return grade_one(job)
    except (SandboxError, ImportError) as error:  # ImportError: a system without fork or resource limits
        return replace(_grade_in_process(job), notes=(f"not in a sandbox: {one_line(str(error))}",))


def progress(folder: Path, cache: Path | None = None) -> list[tuple[str, Row | None]]:
    """Every exercise of the course with the row of its notebook in ``folder``, None if there is none.

    Args:
        cache: where rows are kept, so that only notebooks that have changed run again.
    """
    results = Results(cache) if cache is not None else None
    found = {exercise_of(path): path for path in sorted(folder.glob("*.ipynb")) if _is_exercise(path)}
    table: list[tuple[str, Row | None]] = []
    for name in exercises():
        path = found.get(name)
        row = results.load(ME, name) if results is not None else None
        if path is not None and (row is None or not _current(row, path)):
            row = check_own(path)
            if results is not None:
                results.save(row)
        table.append((name, row if path is not None else None))
    return table


def show(row: Row) -> str:
    """What `check` prints: the verdict of every check, word for word as in the feedback page."""
    lines = [f"{row.exercise}: {points(row.score)} of {points(row.max_score)} points, {row.status}"]
    lines += [f"  {check.message}" for check in row.checks] or [f"  {row.message}"]
    lines += [f"  note: {note}" for note in row.notes]
    lines.append(f"  (public seed; sandbox: {row.isolation or 'no code ran'})")
    return "\n".join(lines)


def show_progress(table: list[tuple[str, Row | None]]) -> str:
    """What `progress` prints."""
    lines = [f"{'exercise':<28}{'points':>9}  state"]
    for name, row in table:
        score = points(row.score) if row is not None else 0
        state = "no notebook" if row is None else row.status if row.status in ("ok", "not attempted") else row.message
        lines.append(f"{name:<28}{f'{score} / {exercise(name).points}':>9}  {state}")
    total = points(sum(row.score for _, row in table if row is not None))
    lines.append(f"{'all':<28}{f'{total} / {sum(exercise(name).points for name, _ in table)}':>9}")
    return "\n".join(lines)


def exercise_of(path: Path) -> str:
    """The exercise with which a file's name begins, as in "ex04_gptq (1).ipynb" or "ex04.ipynb".

    Raises:
        ValueError: there is none.
    """
    for name in exercises():
        if re.match(rf"(?i){re.escape(name)}|{name.partition('_')[0]}(?!\d)", path.stem):
            return name
    raise ValueError(f"the file's name must begin with one of {', '.join(exercises())}, got {path.name}")


def pristine_of(path: Path, name: str) -> bytes:
    """The exercise as handed out: made from the course's solution if that is at hand, else the notebook with stubs."""
    for folder in (path.resolve().parent.parent, Path.cwd()):
        solution = folder / "solutions" / f"{name}.ipynb"
        if solution.is_file():
            return to_text(make_exercise(read_notebook(solution), name)).encode()
    try:
        own = read_notebook(path)
        for cell in own.cells:
            if cell.get("id") in read_answers(own):
                cell.source = STUB
        return to_text(own).encode()
    except Exception as error:  # nbformat, json and the decoder each raise their own
        raise ValueError(f"{path.name} is not a readable notebook: {one_line(str(error))}") from None


def _grade_in_process(job: Job) -> Row:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    from labsupport.grading.intake.notebook import InvalidNotebook, read_submission
    from labsupport.grading.sandbox.kernel import run_cell

    graded = exercise(job.exercise)
    blank = Row(job.student, job.exercise, 0, graded.points, "invalid notebook", "", isolation=IN_PROCESS,
                digest=digest(job.data), seed_fingerprint=fingerprint(job.seed), version=__version__)  # fmt: skip
    try:
        submission: Submission = read_submission(job.data, job.pristine)
    except InvalidNotebook as problem:
        return replace(blank, message=one_line(f"not a notebook that can be graded: {problem}"))
    quiet = Config()
    quiet.HistoryManager.enabled = False  # writes nothing into ~/.ipython
    shell = InteractiveShell(user_ns={"__name__": "__main__"}, config=quiet)
    with capture_output():
        for _, source in submission.cells:
            run_cell(shell, source)
    verdicts = graded.grade(shell.user_ns, job.seed)
    checks = tuple(
        CheckResult(check.name, v.points, check.points, v.passed, one_line(v.message), v.attempted)
        for check in graded.checks
        for v in [verdicts[check.name]]
    )
    return _with_outcome(blank, checks)


def _with_outcome(blank: Row, checks: tuple[CheckResult, ...]) -> Row:
    failed = [check for check in checks if not check.passed]
    attempted = [check for check in failed if check.attempted]
    score = sum(check.points for check in checks)
    if not failed:
        return replace(blank, score=score, status="ok", message=f"all {len(checks)} checks hold", checks=checks)
    status = "failed" if attempted or len(failed) < len(checks) else "not attempted"
    return replace(blank, score=score, status=status, message=(attempted or failed)[0].message, checks=checks)


def _current(row: Row, path: Path) -> bool:
    return row.digest == digest(path.read_bytes()) and row.version == __version__ and row.status != "error"


def _is_exercise(path: Path) -> bool:
    try:
        return bool(exercise_of(path))
    except ValueError:
        return False
