"""Grade a class: ``SUBMISSIONS/<student>/<exercise>.ipynb`` -> ``GRADES``.

Each submission becomes a `Job`, each job a `Row` (`job.grade_one`), and each row is written to disk as soon as it is
known. Jobs are run by threads here: the work is done in the sandboxed processes that they wait for, one per thread, all
forked from one warm process. With ``dask`` the same jobs go to a cluster.

A submission is not graded again if its bytes, the seed, the exercise and the version are those of its row.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import labsupport
from labsupport import __version__
from labsupport.checks import exercise, exercises
from labsupport.files import write_atomically
from labsupport.grading.intake.folder_name import name_of
from labsupport.grading.intake.history import long_names
from labsupport.grading.intake.notebook import InvalidNotebook, read_file
from labsupport.grading.job import Job, close_warm_processes, grade_one, is_current, warm_process
from labsupport.grading.reports.overrides import FILE as OVERRIDES
from labsupport.grading.reports.overrides import read_overrides
from labsupport.grading.reports.results import Results, Row, fingerprint, one_line
from labsupport.progress import progress_bar

SEED_FILE = "seed.txt"


def grade(
    submissions: Path | str,
    out: Path | str,
    workers: int = 1,
    dask: str | None = None,
    seed: int | None = None,
    timeout: float = 60.0,
    course: Path | str | None = None,
    unsafe_no_sandbox: bool = False,
    progress: bool = True,
) -> list[Row]:
    """Grade what is new or changed, and write ``out``: results/, then the reports.

    Args:
        workers: submissions that are graded at the same time.
        dask: address of a Dask scheduler to send the work to instead.
        seed: of the checks' inputs; default: that of ``out/seed.txt``, which is drawn if it is missing.
        timeout: seconds of processor time for one submission; a single check or cell may take a third of it. By the
            clock it may be five times as much.
        course: the folder that holds exercises/ as released; default: the current one, or the one the package is in.
        unsafe_no_sandbox: where no isolation works, grade without any.

    Returns:
        All rows of these submissions, by student and exercise.

    Raises:
        ValueError: a folder does not exist or does not hold what it must, or a number is out of range.
        SandboxError: no isolation works here.
    """
    submissions, out = Path(submissions), Path(out)
    if not submissions.is_dir():
        raise ValueError(f"SUBMISSIONS must be a folder with <student>/<exercise>.ipynb, got {submissions}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    pristine = read_exercises(course)
    read_overrides(out / OVERRIDES)  # better to know of a mistake in it before an hour of grading than after
    seed = _seed(out, seed)
    results = Results(out)
    hidden = tuple(os.path.realpath(folder) for folder in (submissions, out, course or Path.cwd()))
    rows, jobs = [], []
    for student, name, path in find_submissions(submissions, pristine):
        try:
            data = read_file(path)
        except InvalidNotebook as problem:
            rows.append(_unreadable(student, name, seed, str(problem)))
            results.save(rows[-1])
            continue
        job = Job(student, name, data, pristine[name], seed, timeout, unsafe_no_sandbox, hidden)
        row = results.load(student, name)
        if row is not None and is_current(row, job):
            rows.append(row)
        else:
            jobs.append(job)
    graded = _run(jobs, workers, dask)
    for row in progress_bar(graded, "grading", "nb", enabled=progress and bool(jobs), total=len(jobs)):
        results.save(row)
        rows.append(row)
    rows.sort(key=lambda row: (row.student, row.exercise))
    _report(out, rows, pristine)
    return rows


def read_exercises(course: Path | str | None = None) -> dict[str, bytes]:
    """Name -> bytes of every released exercise that has checks.

    Raises:
        ValueError: there are none in ``course`` (else in the current folder, else where the package is).
    """
    places = [Path(course)] if course is not None else [Path.cwd(), Path(labsupport.__file__).parents[1]]
    for place in places:
        for folder in (place / "exercises", place):
            found = {
                path.stem: path.read_bytes() for path in sorted(folder.glob("ex*.ipynb")) if path.stem in exercises()
            }
            if found:
                return found
    raise ValueError(f"--course must be a folder that holds exercises/ex*.ipynb, got {' nor '.join(map(str, places))}")


def find_submissions(folder: Path, known: dict[str, bytes]) -> Iterator[tuple[str, str, Path]]:
    """(student, exercise, path), by name. Links are not followed; files that are not a known exercise are reported."""
    long, seen = long_names(folder), set()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            if entry.is_symlink() or entry.is_dir() or entry.name.endswith(".ipynb"):
                print(f"left out: {one_line(entry.name)} is not a student's folder", file=sys.stderr)
            continue
        for file in sorted(os.scandir(entry.path), key=lambda file: file.name):
            name = file.name.removesuffix(".ipynb")
            if name == file.name or file.name.startswith("."):
                continue
            if name in known:
                student = name_of(os.fsencode(entry.name).decode("utf-8", "backslashreplace"), long)
                if (student, name) in seen:
                    print(f"left out: {one_line(entry.name)} is a second folder of {student}", file=sys.stderr)
                    continue
                seen.add((student, name))
                yield student, name, Path(file.path)
            else:
                print(f"left out: {one_line(entry.name)}/{one_line(file.name)} is not an exercise", file=sys.stderr)


def _run(jobs: list[Job], workers: int, dask: str | None) -> Iterator[Row]:
    """Rows as they come in."""
    if not jobs:
        return
    if dask is not None:
        from labsupport.grading.dask_pool import run_on_dask

        yield from run_on_dask(dask, jobs)
        return
    warm_process(jobs[0].hidden, jobs[0].unsafe_no_sandbox)  # if no sandbox works, fail before anything is graded
    pool = ThreadPoolExecutor(workers, thread_name_prefix="grade")
    try:
        futures = {pool.submit(grade_one, job): job for job in jobs}
        for future in as_completed(futures):
            try:
                yield future.result()
            except Exception as error:  # a bug of ours must not stop the others
                job = futures[future]
                message = one_line(f"the grader failed: {type(error).__name__}: {error}")
                points = exercise(job.exercise).points
                yield Row(job.student, job.exercise, 0, points, "error", message)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        close_warm_processes()  # after Ctrl-C this ends what is still running
        pool.shutdown()


def _unreadable(student: str, name: str, seed: int, why: str) -> Row:
    message = one_line(f"not a notebook that can be graded: {why}")
    return Row(
        student,
        name,
        0,
        exercise(name).points,
        "invalid notebook",
        message,
        seed_fingerprint=fingerprint(seed),
        version=__version__,
    )


def _seed(out: Path, given: int | None) -> int:
    """The ``given`` one, else that of the first run, so that it can be resumed. Others cannot read the file."""
    path = out / SEED_FILE
    if not path.exists():
        write_atomically(path, f"{secrets.randbelow(2**40) if given is None else given}\n", private=True)
    try:
        kept = int(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} must hold one whole number; delete it to draw a new one") from None
    if given not in (None, kept):
        print(f"note: {path} keeps the seed of the first run; --seed is for this run only", file=sys.stderr)
    return kept if given is None else given


def _report(out: Path, rows: list[Row], pristine: dict[str, bytes]) -> None:
    from labsupport.grading.intake.notebook import read_submission
    from labsupport.grading.reports.canvas import UnclearColumn
    from labsupport.grading.reports.write import write_reports

    stubs = {name: "\n\n".join(read_submission(data, data).answers.values()) for name, data in pristine.items()}
    try:
        notes = write_reports(out, rows, stubs=stubs)
    except UnclearColumn as problem:
        notes = [f"{problem} (in `labsupport export`)"]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
