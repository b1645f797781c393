"""Jobs on a Dask cluster of two worker processes: nothing is lost and nothing counts twice, even if a worker dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from labsupport.grading.grade import grade
from labsupport.grading.job import Job
from labsupport.grading.reports.results import Row

pytest.importorskip("distributed", reason="needs the extra `grade`")
from distributed import Client

from labsupport.grading.dask_pool import job_key, run_on_dask

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds, as the machine may be busy


def stand_in(job: Job) -> Row:
    """What a worker runs here: records who began, takes a while, and gives the score that the notebook says."""
    log = Path(job.pristine.decode())
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {job.student}\n")
    if job.data == b"broken":
        raise RuntimeError("disk\nfull")
    time.sleep(0.15)
    return Row(job.student, job.exercise, float(job.data), 100.0, "failed", f"graded by {os.getpid()}")


def jobs(log: Path, count: int) -> list[Job]:
    return [Job(f"s{i}", "ex", str(i).encode(), str(log).encode(), seed=1) for i in range(count)]


class Cluster:
    """A scheduler and its workers, each in a process of its own on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[subprocess.Popen] = []
        self.workers: list[subprocess.Popen] = []
        self.address_file = folder / "scheduler.json"
        self.start("scheduler", "--port", "0")
        wait_until(self.address_file.exists)
        self.address = json.loads(self.address_file.read_text())["address"]

    def start(self, kind: str, *options: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        here = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(self.address_file)]
        with open(self.folder / f"{kind}{len(self.parts)}.log", "w") as log:
            part = subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{kind}", *options, *here],
                                    cwd=self.folder, env=environment, stdout=log, stderr=log)  # fmt: skip
        self.parts.append(part)
        return part

    def with_two_workers(self) -> Cluster:
        """The workers that are alive (they have imported torch by now), and new ones in place of the others."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < 2:
            self.workers.append(self.start("worker", "--no-nanny", "--nthreads", "1", "--name", str(len(self.parts))))
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
        return self


@pytest.fixture(scope="module")
def one_cluster(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    for part in started.parts:
        part.kill()
        part.wait()


@pytest.fixture
def cluster(one_cluster):
    return one_cluster.with_two_workers()


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_killed_midway_loses_nothing_and_doubles_nothing(cluster, tmp_path):
    log = tmp_path / "log"
    workers = {str(worker.pid): worker for worker in cluster.workers}
    rows, killed = [], ""
    for row in run_on_dask(cluster.address, jobs(log, 24), stand_in):
        rows.append(row)
        if len(rows) == 6:
            killed = row.message.removeprefix("graded by ")  # it runs the next job already, and holds some that wait
            workers[killed].send_signal(signal.SIGKILL)
    assert workers[killed].wait() == -signal.SIGKILL
    assert Counter(row.student for row in rows) == Counter(f"s{i}" for i in range(24))
    assert all(row.score == int(row.student[1:]) for row in rows)
    began = [line.split() for line in log.read_text().splitlines()]
    (survivor,) = workers.keys() - {killed}
    by_survivor = Counter(student for pid, student in began if pid == survivor)
    assert by_survivor and set(by_survivor.values()) == {1}
    # graded again is only what had begun, or was not yet handed over, where the worker died
    again = [student for student, times in Counter(student for _, student in began).items() if times > 1]
    assert all(times <= 2 for times in Counter(student for _, student in began).values())
    assert {student for pid, student in began if pid == killed} >= set(again)


@pytest.mark.slow
def test_the_cluster_gives_the_rows_that_this_process_gives(cluster, tmp_path):
    """The real jobs; the worker that is killed has already forked sandboxes of its own."""
    for number, name in enumerate(["ex01_int8_symmetric", "ex02_kv_cache_size", "ex03_mha_vs_gqa"] * 2):
        notebook = json.loads((ROOT / "solutions" / f"{name}.ipynb").read_text(encoding="utf-8"))
        if number % 2:
            for cell in notebook["cells"]:
                if "answer" in cell["metadata"].get("tags", []):
                    cell["source"] = "".join(cell["source"]).replace("return ", "return None, ", 1)
        path = tmp_path / "submissions" / f"s{number}" / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook), encoding="utf-8")
    options = {"seed": 7, "course": ROOT, "unsafe_no_sandbox": True, "timeout": 120, "progress": False}
    killer = threading.Thread(target=kill_when_busy, args=(cluster.workers[0],))
    killer.start()
    by_cluster = grade(tmp_path / "submissions", tmp_path / "by_cluster", dask=cluster.address, **options)
    killer.join()
    here = grade(tmp_path / "submissions", tmp_path / "here", **options)
    assert cluster.workers[0].poll() == -signal.SIGKILL
    told = [(row.student, row.exercise, row.score, row.status, row.message) for row in by_cluster]
    assert told == [(row.student, row.exercise, row.score, row.status, row.message) for row in here]
    assert Counter(row.status for row in by_cluster) == {"ok": 3, "failed": 3}


def kill_when_busy(worker: subprocess.Popen) -> None:
    """Once it has children: the warm process and the sandboxes."""
    wait_until(lambda: len(psutil.Process(worker.pid).children(recursive=True)) > 1)
    worker.kill()
    worker.wait()


@pytest.mark.slow
def test_failures_on_a_worker_are_rows_and_stop_nobody(cluster, tmp_path):
    broken, fine = jobs(tmp_path / "log", 2)
    rows = {row.student: row for row in run_on_dask(cluster.address, [replace(broken, data=b"broken"), fine], stand_in)}
    assert rows["s1"].score == 1
    assert rows["s0"].status == "error" and rows["s0"].message.endswith("(RuntimeError: disk full)")


def test_a_key_is_made_of_all_that_decides_the_result(tmp_path):
    job = jobs(tmp_path, 1)[0]
    others = [replace(job, **change) for change in (
        {"student": "x"}, {"exercise": "x"}, {"data": b"x"}, {"pristine": b"x"}, {"seed": 2}, {"timeout": 1.0},
    )]  # fmt: skip
    assert len({job_key(each) for each in [job, *others]}) == 7
    assert job_key(job) == job_key(replace(job))
    with pytest.raises(ValueError, match="jobs must differ"):
        list(run_on_dask("tcp://127.0.0.1:1", [job, job], stand_in))


def test_no_scheduler_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr("labsupport.grading.dask_pool.CONNECT", 1.0)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
        list(run_on_dask("tcp://127.0.0.1:1", [], stand_in))
