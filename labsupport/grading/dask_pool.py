"""The same jobs on a Dask cluster: ``labsupport grade ... --dask tcp://scheduler:8786``.

A job carries the notebook and the pristine exercise, so workers need only labsupport. The sandbox is that of the
worker's machine, and each row says which level of isolation it had there. Start workers with one thread each
(``dask worker ADDRESS --nthreads 1 --nworkers 8``), on machines that hold nothing that you would not show a student.

When a worker dies, the scheduler gives its jobs to another one. A job's key is a digest of everything that decides its
result, so a job that two clients send runs once, and a job that runs again still gives one row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

from labsupport.grading.job import Job, grade_one
from labsupport.grading.reports.results import Row, one_line

CONNECT, WAIT_FOR_WORKERS = 30.0, 60.0  # seconds


def run_on_dask(address: str, jobs: Sequence[Job], function: Callable[[Job], Row] = grade_one) -> Iterator[Row]:
    """Yield one row per job, as they come in. A job whose workers keep dying gives a row with status ``error``.

    Raises:
        ValueError: two jobs are identical.
        OSError: there is no scheduler at ``address``, or no worker within `WAIT_FOR_WORKERS` seconds.
    """
    from distributed import Client, as_completed  # part of the extra `grade`, and slow to import

    by_key = {job_key(job): job for job in jobs}
    if len(by_key) < len(jobs):
        raise ValueError(f"jobs must differ, got {len(jobs)} jobs of which {len(by_key)} are distinct")
    with Client(address, timeout=CONNECT, set_as_default=False) as client:
        try:
            client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS)
        except TimeoutError:
            raise OSError(f"--dask: the scheduler at {address} has no workers; start some with `dask worker`") from None
        futures = [client.submit(function, job, key=key) for key, job in by_key.items()]
        for future in as_completed(futures, loop=client.loop):
            job = by_key.pop(future.key)
            if future.status == "finished":
                yield future.result()
            else:
                yield _lost(job, future.exception())
            future.release()  # the cluster need not keep a result that has arrived


def job_key(job: Job) -> str:
    """A digest of the job, the same on every machine."""
    digest = hashlib.sha256()
    for field in fields(job):
        value = getattr(job, field.name)
        content = value if isinstance(value, bytes) else repr(value).encode(errors="replace")
        digest.update(f"{field.name}:{len(content)}:".encode() + content)
    return f"grade-{digest.hexdigest()[:32]}"


def _lost(job: Job, error: BaseException | None) -> Row:
    from labsupport.checks import exercise, exercises

    points = exercise(job.exercise).points if job.exercise in exercises() else 0
    message = one_line(f"not graded: the Dask workers that ran it failed ({type(error).__name__}: {error})")
    return Row(job.student, job.exercise, 0.0, float(points), "error", message)
