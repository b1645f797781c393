"""CPU seconds a submission: ``python benchmarks/grading.py [--students 34] [--workers 2] [--others 10]``.

A class hands in exercises 1 to 3, right and wrong answers in turn. Ours grades all of it, in the sandbox, from the
start of the command to the last report. nbval, nbgrader and otter-grader (each only if it is installed) get the first
``--others`` of the same notebooks:

    nbval               one pytest session for all
    nbval, one by one   a pytest session a notebook, so that none can harm the next
    nbgrader            autograde, which executes a notebook in a new kernel
    otter               `otter run`, which executes it and then a test file (one check of ours a test case)

Counted is user and system time of a tool's process and of all its children, measured here, in this one run. Only ours
isolates submissions and judges outside of the process that runs them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = ("ex01_int8_symmetric", "ex02_kv_cache_size", "ex03_mha_vs_gqa")


# A doctest; what the check prints is no part of it.
OTTER_CASE = """>>> import contextlib, io
>>> from labsupport.checks import {short}
>>> with contextlib.redirect_stdout(io.StringIO()):
...     holds = {short}.{check}({needs}) is None
>>> holds
True"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", type=int, default=34, help="each hands in three notebooks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--others", type=int, default=10, help="notebooks for each of the other tools; 0 leaves them out"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        submissions = Path(folder) / "submissions"
        paths = hand_in(submissions, options.students)
        command = [sys.executable, "-m", "labsupport.cli", "grade", submissions, "--out", Path(folder) / "grades"]
        rows = [
            measure(f"labsupport, {options.workers} workers", len(paths), [*command, "--workers", str(options.workers)])
        ]
        grades = pd.read_csv(Path(folder) / "grades" / "grades.csv")
        print(grades.groupby(["exercise", "status"]).size().to_string(), "\n")
        some = spread(paths, options.others)
        for tool in (nbval, nbval_one_by_one, nbgrader, otter) if some else ():
            print(f"{tool.__name__} ...", file=sys.stderr)
            row = tool(Path(folder) / tool.__name__, some)
            rows += [row] if row else []
    table = pd.DataFrame(rows).set_index("tool")
    table["times ours"] = (table["CPU s each"] / table["CPU s each"].iloc[0]).round(1)
    print(table.to_string())


def hand_in(folder: Path, students: int) -> list[Path]:
    """Every third student has a wrong answer, the model answer without its last line."""
    paths = []
    for number in range(students):
        for name in EXERCISES:
            notebook = json.loads((ROOT / "solutions" / f"{name}.ipynb").read_text(encoding="utf-8"))
            if number % 3 == 2:
                for cell in notebook["cells"]:
                    if "answer" in cell["metadata"].get("tags", []):
                        cell["source"] = "".join(cell["source"]).replace("return ", "return None, ", 1)
            paths.append(folder / f"student-{number:03}" / f"{name}.ipynb")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            paths[-1].write_text(json.dumps(notebook), encoding="utf-8")
    return paths


def spread(paths: list[Path], count: int) -> list[Path]:
    return list(islice(cycle(paths), min(count, len(paths))))


def measure(name: str, notebooks: int, *commands: Sequence[object], cwd: Path | None = None) -> dict[str, object]:
    """Run the commands; CPU and wall seconds by notebook. Exit codes tell of failed checks, and are not looked at."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for command in commands:
        subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, check=False)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "tool": name,
        "notebooks": notebooks,
        "CPU s each": round(cpu / notebooks, 2),
        "wall s each": round(wall / notebooks, 2),
    }


def nbval(folder: Path, paths: list[Path]) -> dict[str, object] | None:
    if find_spec("nbval") is None:
        return None
    return measure("nbval", len(paths), _pytest(paths))


def nbval_one_by_one(folder: Path, paths: list[Path]) -> dict[str, object] | None:
    if find_spec("nbval") is None:
        return None
    return measure("nbval, one by one", len(paths), *(_pytest([path]) for path in paths))


def _pytest(paths: list[Path]) -> list[object]:
    plain = ["-q", "-p", "no:cacheprovider", "--rootdir", paths[0].parents[1], "-c", os.devnull]
    return [sys.executable, "-m", "pytest", "--nbval", "--nbval-cell-timeout=60", *plain, *paths]


def nbgrader(folder: Path, paths: list[Path]) -> dict[str, object] | None:
    """A course of nbgrader's own layout, with the solutions as its source."""
    if find_spec("nbgrader") is None:
        return None
    for path in paths:
        for place in (folder / "source" / path.stem, folder / "submitted" / path.parent.name / path.stem):
            place.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "solutions" / path.name, folder / "source" / path.stem)
        shutil.copy(path, folder / "submitted" / path.parent.name / path.stem)
    program = [sys.executable, "-m", "nbgrader"]
    names = sorted({path.stem for path in paths})
    for name in names:  # setting the course up is not counted
        subprocess.run([*program, "generate_assignment", name], cwd=folder, capture_output=True, check=False)
    return measure("nbgrader", len(paths), *[[*program, "autograde", name] for name in names], cwd=folder)


def otter(folder: Path, paths: list[Path]) -> dict[str, object] | None:
    """An autograder with one test file an exercise, whose cases are our checks."""
    if find_spec("otter") is None:
        return None
    commands: list[list[object]] = []
    for path in paths:
        tests = folder / path.stem / "tests"
        if not tests.exists():
            tests.mkdir(parents=True)
            (tests / "q1.py").write_text(_otter_test(path.stem), encoding="utf-8")
            zipped = [sys.executable, "-m", "otter", "generate", "-t", tests, "--no-environment"]
            zipped += ["-o", str(folder / f"{path.stem}.zip")]
            subprocess.run([str(part) for part in zipped], cwd=folder / path.stem, capture_output=True, check=False)
        commands.append([sys.executable, "-m", "otter", "run", "-a", folder / f"{path.stem}.zip", "-o", folder, path])
    return measure("otter", len(paths), *commands)


def _otter_test(exercise: str) -> str:
    sys.path.insert(0, str(ROOT))
    from labsupport.checks import exercise as exercise_of

    short = exercise.partition("_")[0]
    cases = [
        {"code": OTTER_CASE.format(short=short, check=check.name, needs=", ".join(check.needs)), "hidden": False}
        for check in exercise_of(exercise).checks
    ]
    suite = {"cases": cases, "scored": True, "setup": "", "teardown": "", "type": "doctest"}
    return f"test = { {'name': 'q1', 'points': 10, 'suites': [suite]}!r}\nOK_FORMAT = True\n"


if __name__ == "__main__":
    main()
