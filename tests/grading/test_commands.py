"""`collect`, `check`, `progress`, `override` and `export`, as typed on the command line."""

from __future__ import annotations

import csv
import html
import json
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labsupport.checks import PUBLIC_SEED, exercises
from labsupport.cli import app
from labsupport.grading import own_work
from labsupport.grading.job import Job, grade_one
from labsupport.grading.reports.results import Results, Row
from labsupport.grading.sandbox.warm import SandboxError
from labsupport.grading.stubs import place_answers, read_notebook, to_text
from labsupport.widgets.guesses import Guess, keep_guess

ROOT = Path(__file__).parents[2]
CATALOGUE = runpy.run_path(str(ROOT / "tests" / "checks" / "catalogue" / "load.py"))
NAME = "ex02_kv_cache_size"
RIGHT, WRONG = CATALOGUE["answers"](NAME)


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def hand_in(path: Path, cells: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stub = read_notebook(ROOT / "exercises" / f"{NAME}.ipynb")
    path.write_text(to_text(place_answers(stub, cells or {})), encoding="utf-8")
    return path


@pytest.fixture
def graded(tmp_path, monkeypatch):
    """A class of three, collected and with reports, as after `labsupport grade`."""
    from labsupport.grading.reports.write import write_reports

    monkeypatch.chdir(ROOT)
    for student, cells in (("alice", RIGHT[0].cells), ("bob", WRONG[0].cells), ("carol", None)):
        hand_in(tmp_path / "in" / f"{student}_ex02.ipynb", cells)
    assert run("collect", tmp_path / "in", "--out", tmp_path / "submissions").exit_code == 0
    rows = []
    for path in sorted((tmp_path / "submissions").glob("*/*.ipynb")):
        job = Job(path.parent.name, NAME, path.read_bytes(), (ROOT / "exercises" / path.name).read_bytes(), seed=5)
        try:
            rows.append(grade_one(job))
        except SandboxError as error:
            pytest.skip(f"no sandbox works here: {error}")
        Results(tmp_path / "grades").save(rows[-1])
    write_reports(tmp_path / "grades", rows)
    return tmp_path


def scores(grades: Path) -> dict[str, str]:
    with open(grades / "grades.csv", newline="") as file:
        return {row["student"]: row["score"] for row in csv.DictReader(file)}


def test_collect_override_export(graded):
    grades = graded / "grades"
    assert scores(grades)["alice"] == "10" and scores(grades)["carol"] == "0" and float(scores(grades)["bob"]) < 10
    feedback = (grades / "feedback" / "bob.html").read_text()
    assert WRONG[0].check in feedback and WRONG[0].phrase in html.unescape(feedback)
    result = run("override", grades, "bob", NAME, "7.5", "--reason", "talked it through")
    assert result.exit_code == 0, result.output
    assert scores(grades)["bob"] == "7.5" and "talked it through" in (grades / "feedback" / "bob.html").read_text()
    (grades / "overrides.csv").unlink()
    (graded / "class.csv").write_text("student,name,login\nbob,Bob B,bb\n")
    result = run("export", grades, "--roster", graded / "class.csv")
    assert result.exit_code == 0, result.output
    assert float(scores(grades)["bob"]) < 7.5
    assert "Bob B,,,bb," in (grades / "canvas.csv").read_text()


def test_export_leaves_out_rows_of_submissions_that_are_gone(graded):
    lines = (graded / "grades" / "grades.csv").read_text().splitlines()
    (graded / "grades" / "grades.csv").write_text(
        "\n".join(line for line in lines if not line.startswith("bob")) + "\n"
    )
    assert run("export", graded / "grades").exit_code == 0
    assert set(scores(graded / "grades")) == {"alice", "carol"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["override", "{grades}", "alice", "ex99", "3", "--reason", "x"], "exercise must be one of"),
    (["override", "{grades}", "alice", NAME, "3", "--reason", " "], "reason must not be empty"),
    (["override", "{empty}", "alice", NAME, "3", "--reason", "x"], "has no grades.csv"),
    (["export", "{empty}"], "has no results"),
    (["collect", "{empty}/none", "--out", "{empty}/o"], "must be a folder or a zip"),
    (["collect", "{empty}", "--out", "{other}", "--exercise", "ex99"], "--exercise must be one of"),
    (["collect", "{empty}", "--out", "{other}", "--deadline", "soon"], "--deadline must be a time like"),
    (["check", "{empty}/homework.ipynb"], "name must begin with one of"),
    (["check", "{empty}/ex02.ipynb"], "cannot be read"),
    (["progress", "{empty}/none"], "FOLDER must be"),
])  # fmt: skip
def test_mistakes_are_said_in_one_line(tmp_path, arguments, message):
    places = {name: tmp_path / name for name in ("grades", "empty", "other")}
    for place in places.values():
        place.mkdir()
    (places["grades"] / "grades.csv").write_text("student,exercise,score,max_score,status,message\n")
    result = run(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2 and result.output.startswith("error: ") and result.output.count("\n") == 1
    assert message in result.output


def test_collect_ends_with_1_if_something_was_left_out(tmp_path):
    hand_in(tmp_path / "in" / "alice_ex02.ipynb")
    (tmp_path / "in" / "strange.ipynb").write_text("{}")
    result = run("collect", tmp_path / "in", "--out", tmp_path / "out", "--deadline", "2020-01-01")
    assert result.exit_code == 1
    assert "late       alice/ex02_kv_cache_size" in result.output and "unknown    strange.ipynb" in result.output


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "cache"))


def test_check_says_what_grading_with_the_public_seed_says(tmp_path, own_cache):
    path = hand_in(tmp_path / f"{NAME}.ipynb", WRONG[0].cells)
    pristine = (ROOT / "exercises" / f"{NAME}.ipynb").read_bytes()
    try:
        row = grade_one(Job("s", NAME, path.read_bytes(), pristine, PUBLIC_SEED))
    except SandboxError as error:
        pytest.skip(f"no sandbox works here: {error}")
    result = run("check", path)
    assert result.exit_code == 1
    assert [line.strip() for line in result.stdout.splitlines()[1:-1]] == [check.message for check in row.checks]
    said = result.stderr.splitlines()
    assert said[0] == f"{NAME}: starting Python in a sandbox, with PyTorch in it"
    assert said[1:] == [f"{NAME}: {check.name}" for check in row.checks]
    again = run("check", path)
    assert again.stdout == result.stdout
    assert again.stderr == f"{NAME}: not run again, since nothing in it has changed\n"
    right = run("check", hand_in(path, RIGHT[0].cells))
    assert right.exit_code == 0 and right.stdout.startswith(f"{NAME}: 10 of 10 points, ok\n")


def test_progress_counts_exercises_and_predictions(tmp_path, monkeypatch, own_cache):
    runs = []

    def counted(name, *_):
        runs.append(name)
        return Row(own_work.ME, name, 10, 10, "ok", "all 6 checks hold")

    monkeypatch.setattr(own_work, "_run", counted)
    folder = tmp_path / "exercises"
    hand_in(folder / f"{NAME}.ipynb", RIGHT[0].cells)
    (folder / "scratch.ipynb").write_text("{}")
    first = run("progress", folder)
    assert first.exit_code == 0, first.output
    lines = {line.split()[0]: line for line in first.stdout.splitlines()}
    assert "10 / 10  ok" in lines[NAME] and "0 / 20  no notebook" in lines["ex04_gptq"]
    assert list(lines)[1:-1] == exercises() and "10 / 110" in lines["all"]
    (tmp_path / "notebooks").mkdir()
    chapter = {"cells": [{"cell_type": "code", "source": 'predict("a", "One?")', "metadata": {}}]}
    (tmp_path / "notebooks" / "01_first.ipynb").write_text(json.dumps(chapter))
    keep_guess(tmp_path / "notebooks", Guess("a", "One?", 1.0))
    again = run("progress", folder)
    assert runs == [NAME] and "not run again" in again.stderr
    assert (
        again.stdout.startswith(f"{first.stdout}\npredictions")
        and "01_first                        1 / 1" in again.stdout
    )
