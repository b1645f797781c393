"""Grading a class: resumed runs, partial credit, odd names, and one submission's trouble is not another's."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attacks.world import RIGHT, ROOT, notebook

from labsupport.grading import grade as grading
from labsupport.grading import job as jobs
from labsupport.grading.grade import find_submissions, grade, read_exercises
from labsupport.grading.job import Job, close_warm_processes, grade_one, is_current
from labsupport.grading.reports.results import Results, Row, file_name, one_line
from labsupport.grading.sandbox.warm import SandboxError

EX01 = "ex01_int8_symmetric"
PRISTINE = (ROOT / "exercises" / f"{EX01}.ipynb").read_bytes()
QUANTIZE = RIGHT.split("def dequantize")[0]
DEQUANTIZE = RIGHT[RIGHT.index("def dequantize") :]


@pytest.fixture(scope="module", autouse=True)
def one_warm_process():
    yield
    close_warm_processes()


def job_of(answers: dict[str, str], timeout: float = 120) -> Job:
    return Job("ada", EX01, json.dumps(notebook(answers)).encode(), PRISTINE, 5, timeout, unsafe_no_sandbox=True)


def passed(row: Row) -> list[str]:
    return [check.name for check in row.checks if check.passed]


def submit(folder: Path, student: str, data: bytes, exercise: str = EX01) -> Path:
    path = folder / student / f"{exercise}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# One submission ---------------------------------------------------------------------------------------------------


def test_partial_credit_by_check() -> None:
    row = grade_one(job_of({"answer-quantize": QUANTIZE}))
    assert (row.score, row.max_score, row.status) == (6, 10, "failed")
    assert passed(row) == ["check_scale", "check_codes", "check_axis"]
    assert row.message.startswith("✗ check_dequantize (0 of 1 points): ")
    assert row.isolation in ("namespaces", "landlock", "none") and row.cpu_seconds > 0 and row.memory_mb > 50
    assert row.answers["answer-quantize"] == QUANTIZE


@pytest.mark.parametrize(
    "code, status, why",
    [
        ("import os; os._exit(3)", "exited", "your code ended its own process (exit code 3)"),
        ("while True: pass", "timeout", "your code took too long"),
        ("import os\n    while True: os.write(1, bytes(1 << 16))", "output limit", "your code printed too much"),
    ],
)
def test_what_one_function_does_costs_the_other_nothing(code: str, status: str, why: str) -> None:
    """The run is cut short in the middle of a check; the other function's check is run in a fresh process."""
    row = grade_one(
        job_of({"answer-quantize": QUANTIZE, "answer-dequantize": f"def dequantize_int8(q, scale):\n    {code}"}, 12)
    )
    assert passed(row) == ["check_scale", "check_codes", "check_axis"]
    assert row.status == status and why in row.message
    quantize = f"def quantize_int8(x, axis=None):\n    {code}"
    row = grade_one(job_of({"answer-quantize": quantize, "answer-dequantize": DEQUANTIZE}, 12))
    assert row.score == (0 if status == "timeout" else 1), row  # a timeout of a third each leaves no time


def test_a_cell_that_ends_the_process_ends_all_checks_at_once() -> None:
    row = grade_one(job_of({"answer-quantize": "import os; os._exit(0)", "answer-dequantize": RIGHT}))
    assert row.status == "exited" and row.score == 0
    assert ", while cell answer-quantize ran" in row.message


def test_a_syntax_error_is_named_and_counts_as_an_attempt() -> None:
    row = grade_one(job_of({"answer-quantize": "def quantize_int8(x, axis=None)\n    return 1"}))
    assert row.status == "failed" and "there is no function quantize_int8; cell answer-quantize" in row.message
    assert "has a syntax error in line 1, `def quantize_int8(x, axis=None)`: expected ':'" in row.message


def test_memory_is_told_from_other_failures() -> None:
    row = grade_one(
        job_of({"answer-quantize": "import torch\ndef quantize_int8(x, axis=None): return torch.zeros(1 << 40)"})
    )
    assert row.status == "memory" and row.score == 0


def test_a_stub_is_not_run(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "warm_process", lambda *_: pytest.fail("nothing should run"))
    row = grade_one(replace(job_of({}), data=PRISTINE))
    assert (row.score, row.status) == (0, "not attempted")
    assert len(row.checks) == 6 and not any(check.attempted for check in row.checks)


def test_another_seed_draws_other_inputs_and_does_not_show(monkeypatch) -> None:
    sent: list[tuple] = []
    warm = jobs.warm_process((), True)
    run = warm.run

    def listen(cells, name, inputs, limits, visits, watch):
        sent.append((cells, inputs))
        return run(cells, name, inputs, limits, visits, watch)

    monkeypatch.setattr(jobs, "warm_process", lambda *_: warm)
    monkeypatch.setattr(warm, "run", listen)
    job = job_of({"answer-quantize": RIGHT, "answer-dequantize": RIGHT})
    rows = [grade_one(replace(job, seed=seed)) for seed in (987654321, 7)]
    assert [row.score for row in rows] == [10, 10]
    assert sent[0][1][0] != sent[1][1][0]
    assert "987654321" not in repr(sent)
    assert rows[0].seed_fingerprint != rows[1].seed_fingerprint


def test_private_inputs_stay_outside() -> None:
    encoded, drawn = jobs._draw("ex04_gptq", 1)
    assert any(key.startswith("_") for inputs in drawn.values() for key in inputs)
    from labsupport.checks.plain import decode

    assert not any(key.startswith("_") for data in encoded.values() for key in decode(data))


def test_a_failing_sandbox_is_the_graders_error(monkeypatch) -> None:
    class Broken:
        level = "namespaces"

        def run(self, *_):
            raise SandboxError("no space left")

    monkeypatch.setattr(jobs, "warm_process", lambda *_: Broken())
    row = grade_one(job_of({"answer-quantize": QUANTIZE}))
    assert row.status == "error" and "was not graded: no space left" in row.message
    assert not is_current(row, job_of({"answer-quantize": QUANTIZE}))  # it is graded again next time


# A class ----------------------------------------------------------------------------------------------------------


def test_only_what_changed_is_graded_again(tmp_path: Path, monkeypatch) -> None:
    submissions, out = tmp_path / "s", tmp_path / "g"
    for student in ("ada", "bob", "cyd"):
        submit(submissions, student, json.dumps(notebook({"answer-quantize": QUANTIZE})).encode())
    graded: list[str] = []

    def count(job: Job) -> Row:
        graded.append(job.student)
        return grade_one(job)

    monkeypatch.setattr(grading, "grade_one", count)
    monkeypatch.setattr(grading, "close_warm_processes", lambda: None)  # the fixture closes it

    def run(**options) -> list[Row]:
        graded.clear()
        return grade(submissions, out, course=ROOT, unsafe_no_sandbox=True, progress=False, timeout=300, **options)

    first = run(workers=2)
    assert sorted(graded) == ["ada", "bob", "cyd"]
    assert run() == first and graded == []
    submit(submissions, "bob", json.dumps(notebook({"answer-quantize": QUANTIZE, "answer-dequantize": RIGHT})).encode())
    assert [row.score for row in run()] == [6, 10, 6] and graded == ["bob"]
    Results(out).path("cyd", EX01).write_text("{half a row")
    run()
    assert graded == ["cyd"]
    run(seed=3)
    assert sorted(graded) == ["ada", "bob", "cyd"]
    assert int((out / "seed.txt").read_text()) != 3 and (out / "seed.txt").stat().st_mode & 0o077 == 0


def test_an_interrupted_run_keeps_its_rows(tmp_path: Path, monkeypatch) -> None:
    for student in ("ada", "bob", "cyd"):
        submit(tmp_path / "s", student, PRISTINE)
    calls = []

    def interrupted(job: Job) -> Row:
        calls.append(job.student)
        if job.student == "bob":
            raise KeyboardInterrupt
        return grade_one(job)

    monkeypatch.setattr(grading, "grade_one", interrupted)
    monkeypatch.setattr(grading, "warm_process", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        grade(tmp_path / "s", tmp_path / "g", course=ROOT, seed=1, progress=False)
    assert "ada" in [row.student for row in Results(tmp_path / "g")]
    assert not (tmp_path / "g" / "grades.csv").exists()


def test_a_bug_of_the_grader_is_one_row(tmp_path: Path, monkeypatch) -> None:
    for student in ("ada", "bob"):
        submit(tmp_path / "s", student, PRISTINE)

    def buggy(job: Job) -> Row:
        if job.student == "ada":
            raise RuntimeError("a bug\nof ours")
        return grade_one(job)

    monkeypatch.setattr(grading, "grade_one", buggy)
    monkeypatch.setattr(grading, "warm_process", lambda *_: None)
    rows = grade(tmp_path / "s", tmp_path / "g", course=ROOT, seed=1, progress=False)
    assert [row.status for row in rows] == ["error", "not attempted"]
    assert rows[0].message == "the grader failed: RuntimeError: a bug of ours" and rows[0].max_score == 10


def test_odd_names_stay_inside_the_output(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(grading, "warm_process", lambda *_: None)  # stubs are not run
    names = ["=cmd|'calc'!A1", "a b@c.d", "Zoë", "x" * 200, "new\nline", "-rf", "~", os.fsdecode(b"latin\xe9")]
    for name in names:
        submit(tmp_path / "s", name, PRISTINE)
    rows = grade(tmp_path / "s", tmp_path / "g", course=ROOT, seed=1, progress=False)
    assert len(rows) == len(names)
    written = [path for path in (tmp_path / "g").rglob("*") if path.is_file()]
    assert len([path for path in written if path.suffix == ".json"]) == len(names)
    assert all(path.resolve().is_relative_to(tmp_path / "g") for path in written)
    assert sorted(os.listdir(tmp_path)) == ["g", "s"]
    with open(tmp_path / "g" / "grades.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["student", "exercise", "score", "max_score", "status", "message"] and len(read) == len(
        names
    )


def test_names_that_differ_have_files_that_differ() -> None:
    names = ["a/b", "a-b", "a.b", "..", ".", "", "A/B", "a\0b", "a b ", "a b", "é", "e\u0301", "\ud800", "\udcff"]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(name and "/" not in name and "\0" not in name and name not in (".", "..") for name in made)


def test_links_and_strangers_are_left_out_and_told_of(tmp_path: Path, capsys) -> None:
    submit(tmp_path / "s", "ada", PRISTINE)
    submit(tmp_path / "s", "ada", PRISTINE, "homework")
    (tmp_path / "s" / "eve").symlink_to(tmp_path / "s" / "ada")
    (tmp_path / "s" / "notes.txt").touch()
    (tmp_path / "s" / f"{EX01}.ipynb").touch()
    (tmp_path / "s" / "ada" / ".ipynb_checkpoints").mkdir()
    found = list(find_submissions(tmp_path / "s", {EX01: b""}))
    assert found == [("ada", EX01, tmp_path / "s" / "ada" / f"{EX01}.ipynb")]
    told = capsys.readouterr().err
    assert (
        "ada/homework.ipynb is not an exercise" in told
        and "eve is not a student's folder" in told
        and "notes.txt" not in told
    )


def test_the_course_is_found_from_anywhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert EX01 in read_exercises()  # where the package lies
    (tmp_path / "exercises").mkdir()
    (tmp_path / "exercises" / "ex02_kv_cache_size.ipynb").write_bytes(b"{}")
    assert list(read_exercises()) == ["ex02_kv_cache_size"]
    assert EX01 in read_exercises(ROOT) and EX01 in read_exercises(ROOT / "exercises")
    with pytest.raises(ValueError, match="--course must be a folder that holds exercises"):
        read_exercises(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "options, why",
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": float("nan")}, "timeout must be"),
    ],
)
def test_bad_arguments_are_named(options: dict, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        grade(tmp_path, tmp_path / "g", course=ROOT, **options)
    with pytest.raises(ValueError, match="SUBMISSIONS must be a folder"):
        grade(tmp_path / "missing", tmp_path / "g", course=ROOT)


def test_messages_are_one_line() -> None:
    assert one_line("a\nb\x1b[2Jc\u2028d\ud800e") == "a b [2Jc d e"
    assert len(one_line("x" * 1000)) == 500


def test_the_command(tmp_path: Path) -> None:
    submit(tmp_path / "s", "ada", json.dumps(notebook({"answer-quantize": RIGHT, "answer-dequantize": RIGHT})).encode())
    submit(tmp_path / "s", "bob", b"\xff")
    command = [
        sys.executable,
        "-m",
        "labsupport.cli",
        "grade",
        "s",
        "--out",
        "g",
        "--workers",
        "2",
        "--timeout",
        "300",
        "--unsafe-no-sandbox",
    ]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    assert "2 submissions: 1 ok, 1 invalid notebook. Isolation: " in outcome.stdout
    assert "grading: 100%" in outcome.stderr
    with open(tmp_path / "g" / "grades.csv", newline="", encoding="utf-8") as file:
        rows = [(row["student"], float(row["score"]), row["status"]) for row in csv.DictReader(file)]
    assert rows == [("ada", 10, "ok"), ("bob", 0, "invalid notebook")]
    wrong = subprocess.run([*command[:4], "nowhere", "--out", "g"], cwd=tmp_path, capture_output=True, text=True)
    assert (
        wrong.returncode == 2
        and wrong.stderr.startswith("error: SUBMISSIONS must be a folder")
        and "Traceback" not in wrong.stderr
    )
