"""Collecting, grading and exporting a class: ``python benchmarks/intake.py [--students 200] [--package FOLDER]``.

    the class   a zip as Moodle writes it, with exercise 1 of every student (every third is wrong), and a roster:
                seconds of processor and by the clock, and the largest memory of a process, of each command
    the cases   tests/grading/intake/cases.toml: in how many everybody has their own work, and nothing else is there,
                and the exit code says whether somebody should look

``--package`` names another checkout (of an older version) that is measured instead; the files are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "grading" / "intake"))

from making import CASES, content, make  # noqa: E402

NAME = "ex01_int8_symmetric"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", type=int, default=200)
    parser.add_argument("--package", type=Path, default=ROOT)
    parser.add_argument("--cases-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(options.package)
    if options.cases_only:
        print_cases()
        return
    environment = {**os.environ, "PYTHONPATH": str(options.package.resolve()), "OMP_NUM_THREADS": "1"}
    print(f"{'command':<20}{'CPU s':>8}{'wall s':>8}{'MB':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(Path(folder), options.students):
            cpu, wall, memory = measured([sys.executable, "-m", "labsupport.cli", *command], environment)
            print(f"{name:<20}{cpu:>8.1f}{wall:>8.1f}{memory:>7.0f}")
        with open(Path(folder) / "grades" / "grades.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    full = sum(row["status"] == "ok" for row in rows)
    print(f"{len(rows)} of {options.students} graded, {full} with full marks\n")
    subprocess.run(
        [sys.executable, __file__, "--package", options.package, "--cases-only"], env=environment, check=True
    )


def commands(folder: Path, students: int) -> list[tuple[str, list[str]]]:
    """The commands to be measured, in order, and their files."""
    roster = ["Identifier,Full name,Email address,Status"]
    with zipfile.ZipFile(folder / "class.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(students):
            notebook = json.loads((ROOT / "solutions" / f"{NAME}.ipynb").read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                if number % 3 == 2 and "answer" in cell["metadata"].get("tags", []):
                    cell["source"] = "".join(cell["source"]).replace("return ", "return None, ", 1)
            entry = f"Student {number} Möller_{1000 + number}_assignsubmission_file_/{NAME}.ipynb"
            archive.writestr(entry, json.dumps(notebook))
            roster.append(f"Participant {1000 + number},Student {number} Möller,s{number}@uni.edu,Submitted")
    (folder / "class.csv").write_text("\n".join(roster) + "\n", encoding="utf-8")
    submissions, grades, people = str(folder / "submissions"), str(folder / "grades"), str(folder / "class.csv")
    collect = ["collect", str(folder / "class.zip"), "--out", submissions, "--roster", people]
    grade = ["grade", submissions, "--out", grades]
    export = ["export", grades, "--roster", people]
    return [
        ("collect", collect),
        ("collect again", collect),
        ("grade", grade),
        ("grade again", grade),
        ("export", export),
    ]


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Processor and wall seconds of a command with all its children, and MB of the largest of its processes."""
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(child.pid, 0)
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024


def print_cases() -> None:
    wrong = [case["name"] for case in CASES if not is_right(case)]
    print(f"{len(CASES) - len(wrong)} of {len(CASES)} cases are right")
    for name in wrong:
        print(f"    wrong: {name}")


def is_right(case: dict[str, Any]) -> bool:
    """What folders are called does not count, only who shares one."""
    from typer.testing import CliRunner

    from labsupport.cli import app

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        place = Path(folder)
        sources = make(case, place / "in")
        more = list(case.get("args", []))
        if "roster" in case:
            (place / "roster.csv").write_text(case["roster"], encoding="utf-8")
            more += ["--roster", str(place / "roster.csv")]
        for kinds in case.get("runs", [list(sources)]):
            paths = [str(sources[kind]) for kind in kinds]
            result = CliRunner().invoke(app, ["collect", *paths, "--out", str(place / "out"), *more])
        found = sorted(
            sorted((path.stem.partition("_")[0], path.read_bytes()) for path in student.glob("*.ipynb"))
            for student in (place / "out").glob("*/")
        )
    wanted: dict[str, list[tuple[str, bytes]]] = {}
    for key, text in case["has"].items():
        student, _, exercise = key.rpartition(" / ")
        wanted.setdefault(student, []).append((exercise, content(text)))
    expected = sorted(sorted(files) for files in wanted.values())
    if any(text.endswith("*") for text in case["has"].values()):  # one of several contents
        return len(found) == len(expected) and result.exit_code == case.get("rc", 0)
    return found == expected and result.exit_code == case.get("rc", 0)


if __name__ == "__main__":
    main()
