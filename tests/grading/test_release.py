"""Exercises are made from solutions: nothing leaks, nothing is lost, the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import labsupport
from labsupport.checks import exercise, exercises
from labsupport.grading.release import compare, release
from labsupport.grading.stubs import make_exercise, read_notebook, to_text

ROOT = Path(__file__).parents[2]

ANSWER = """
def double(x):
    ### BEGIN SOLUTION
    return 2 * x  # secret
    ### END SOLUTION
""".strip()


TAGS = ["check", "nbval-ignore-output"]


def solution() -> nbformat.NotebookNode:
    check = new_code_cell("check(double)", id="check-double", metadata={"tags": TAGS}, execution_count=41)
    check.outputs = [new_output("stream", name="stdout", text="✓ fine\n")]
    look = new_code_cell(
        "double(2)",
        id="look",
        execution_count=9,
        metadata={"scrolled": True, "execution": {"iopub.execute_input": "now"}},
    )
    look.outputs = [new_output("execute_result", data={"text/plain": "4"}, execution_count=9)]
    cells = [
        new_markdown_cell("# Task", id="task"),
        new_code_cell(
            ANSWER,
            id="answer-double",
            metadata={"tags": ["answer", "nbval-ignore-output"], "nbgrader": {"grade": False}},
        ),
        look,
        check,
        new_markdown_cell("why it works", id="discussion", metadata={"tags": ["solution"]}),
    ]
    notebook = new_notebook(
        cells=cells,
        metadata={
            "widgets": {"state": 1},
            "celltoolbar": "Tags",
            "language_info": {"version": "3.99", "name": "python"},
        },
    )
    notebook.nbformat_minor = 5
    return notebook


@pytest.fixture
def course(tmp_path):
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "ex.ipynb").write_text(to_text(solution()), encoding="utf-8")
    return tmp_path


def test_the_repository_is_in_step():
    report = release(ROOT, check=True)
    assert report.in_step, str(report)
    assert [name.removesuffix(".ipynb") for name in report.unchanged] == exercises()


def test_an_exercise_keeps_ids_and_tags_and_no_output(course):
    release(course)
    made = read_notebook(course / "exercises" / "ex.ipynb")
    nbformat.validate(made)
    cells = {cell.id: cell for cell in made.cells}
    assert list(cells) == ["task", "answer-double", "look", "check-double"]
    assert cells["answer-double"].metadata == {"tags": ["answer", "nbval-ignore-output"], "nbgrader": {"grade": False}}
    assert cells["look"].metadata == {}
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells.values() if "outputs" in cell)
    assert cells["check-double"].metadata == {"tags": TAGS}
    assert made.metadata.kernelspec.name == "python3" and made.metadata.celltoolbar == "Tags"
    assert "widgets" not in made.metadata and "version" not in made.metadata.language_info
    assert (made.nbformat, made.nbformat_minor) == (4, 5)


def test_release_is_deterministic_and_leaves_no_other_files(course):
    assert release(course).written == ["ex.ipynb"]
    first = (course / "exercises" / "ex.ipynb").read_bytes()
    again = release(course)
    assert again.written == [] and again.unchanged == ["ex.ipynb"]
    rerun = solution()  # the author ran cells in another order, on another day
    rerun.cells[3].execution_count = 7
    rerun.cells[3].outputs = [new_output("stream", name="stdout", text=part) for part in ("✓ fi", "ne", "\n")]
    rerun.cells[3].metadata["execution"] = {"iopub.execute_input": "later"}
    (course / "solutions" / "ex.ipynb").write_text(to_text(rerun), encoding="utf-8")
    assert release(course).unchanged == ["ex.ipynb"]
    assert (course / "exercises" / "ex.ipynb").read_bytes() == first
    assert first.endswith(b"}\n") and b"\r" not in first
    assert sorted(path.name for path in (course / "exercises").iterdir()) == ["ex.ipynb"]


def test_check_says_what_differs_and_writes_nothing(course):
    assert release(course, check=True).stale == {"ex.ipynb": ["missing: not released yet"]}
    assert not (course / "exercises").exists()
    release(course)
    target = course / "exercises" / "ex.ipynb"
    tampered = json.loads(target.read_text(encoding="utf-8"))
    tampered["cells"][1]["source"] = "pass"
    del tampered["cells"][0]
    target.write_text(json.dumps(tampered), encoding="utf-8")
    (course / "exercises" / "old.ipynb").write_text("{}")
    before = target.read_bytes()
    report = release(course, check=True)
    assert report.stale == {"ex.ipynb": ["cell answer-double: different source", "cell task: missing"]}
    assert report.orphans == ["old.ipynb"] and not report.in_step
    assert target.read_bytes() == before
    for text in ("stale      ex.ipynb", "cell task: missing", "orphan     old.ipynb"):
        assert text in str(report)


def test_compare_reads_anything(course):
    wanted = to_text(make_exercise(solution()))
    assert compare(b"\xff\xfe garbage", wanted)[0].startswith("not a notebook")
    assert compare(wanted.replace('"python3"', '"other"').encode(), wanted) == [
        "different metadata, order of cells or formatting"
    ]


@pytest.mark.parametrize(("cell", "change", "message"), [
    (3, {"outputs": []}, "check-double: a check cell must be stored with its output, it has no output"),
    (3, {"execution_count": None}, "check-double: a check cell must be stored with its output"),
    (3, {"outputs": [new_output("error", ename="CheckFailed", evalue="no", traceback=[])]}, "it has an error"),
    (3, {"metadata": {"tags": ["check"]}}, "check-double: a check cell needs the tag `nbval-ignore-output`"),
    (2, {"id": "task"}, "an id of its own"),
    (2, {"id": None}, "an id of its own"),
    (2, {"source": ANSWER}, "look: has a solution marker but lacks the tag"),
    (1, {"source": "def f():\n    return 42"}, "answer-double: an answer cell needs"),
])  # fmt: skip
def test_a_solution_that_cannot_be_released_changes_no_file(course, cell, change, message):
    release(course)
    good = (course / "exercises" / "ex.ipynb").read_bytes()
    broken = solution()
    broken.cells[cell].update(change)
    (course / "solutions" / "zz.ipynb").write_text(json.dumps(broken), encoding="utf-8")  # to_text would fix ids
    (course / "solutions" / "aa.ipynb").write_text(to_text(solution()), encoding="utf-8")
    with pytest.raises(ValueError, match=f"zz.ipynb.*{message}"):
        release(course)
    assert (course / "exercises" / "ex.ipynb").read_bytes() == good
    assert not (course / "exercises" / "aa.ipynb").exists()


def test_no_solutions_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold solutions/\*.ipynb"):
        release(tmp_path)


# The exercises of this course ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises())
def test_an_exercise_is_put_together_as_the_course_asks(name):
    notebook = read_notebook(ROOT / "exercises" / f"{name}.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = {cell.id: cell.metadata.get("tags", []) for cell in notebook.cells}
    checks = [cell for cell in code if "check" in tags[cell.id]]
    text = "\n".join(cell.source for cell in notebook.cells)
    assert [cell.source.split(".")[1].split("(")[0] for cell in checks] == [
        check.name for check in exercise(name).checks
    ]
    assert [cell.id.replace("-", "_") for cell in checks] == [check.name for check in exercise(name).checks]
    assert f"**{exercise(name).points} points" in text
    assert "BEGIN SOLUTION" not in text and "discussion" not in tags
    assert all("nbval-ignore-output" in tags[i] for i in tags if {"answer", "check"} & set(tags[i]))
    assert "## Theory in five lines" in text and "](../notebooks/" in text and text.count("<details>") >= 3
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert "✓" not in text, "no success above an empty answer"
    (bug,) = [cell.source for cell in notebook.cells if cell.source.startswith("## Find the bug (no points)")]
    assert "<details>\n<summary>Answer</summary>\n\n" in bug and bug.endswith("\n\n</details>")


@pytest.mark.parametrize("name", exercises())
def test_a_solution_shows_every_success(name):
    notebook = read_notebook(ROOT / "solutions" / f"{name}.ipynb")
    checks = [cell for cell in notebook.cells if "check" in cell.metadata.get("tags", [])]
    for cell, check in zip(checks, exercise(name).checks, strict=True):
        (output,) = cell.outputs
        assert output.text == f"✓ {check.name} ({check.points} of {check.points} points): {check.holds}\n"


@pytest.mark.parametrize("folder", ["solutions", "exercises"])
@pytest.mark.parametrize("name", exercises())
def test_colab_installs_from_the_one_address(name, folder):
    first = next(cell for cell in read_notebook(ROOT / folder / f"{name}.ipynb").cells if cell.cell_type == "code")
    assert [line for line in first.source.splitlines() if "://" in line] == [f'COURSE_URL = "{labsupport.COURSE_URL}"']
    assert '"google.colab" in sys.modules' in first.source and '"--no-deps"' in first.source
