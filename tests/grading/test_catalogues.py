"""The catalogues of all exercises through the sandbox: full marks for every right answer, less for every wrong one.

Two right and two wrong answers of each exercise always, the others in the slow tests.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from labsupport.checks import exercise, exercises
from labsupport.grading.grade import grade

ROOT = Path(__file__).parents[2]
CATALOGUE = runpy.run_path(str(ROOT / "tests" / "checks" / "catalogue" / "load.py"))


def some(name: str) -> list[Any]:
    """The model answer and another right one; two wrong ones that different checks catch."""
    right, wrong = CATALOGUE["answers"](name)
    return [right[0], right[-1], wrong[0], wrong[-1]]


def others(name: str) -> list[Any]:
    right, wrong = CATALOGUE["answers"](name)
    chosen = some(name)
    return [answer for answer in (*right, *wrong) if answer not in chosen]


def write(folder: Path, name: str, student: str, cells: dict[str, str]) -> None:
    notebook = json.loads((ROOT / "exercises" / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["id"] in cells:
            cell["source"] = cells[cell["id"]]
    path = folder / student / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.mark.parametrize("names, choose", [
    pytest.param(exercises(), some, id="some of each"),
    *(pytest.param([name], others, id=f"the others of {name}", marks=pytest.mark.slow) for name in exercises()),
])  # fmt: skip
def test_right_answers_get_full_marks_and_wrong_ones_their_message(names: list[str], choose, tmp_path: Path) -> None:
    expected = {}
    for name in names:
        for number, answer in enumerate(choose(name)):
            write(tmp_path / "submissions", name, f"s{number:03}", answer.cells)
            expected[f"s{number:03}", name] = answer
        write(tmp_path / "submissions", name, "stub", {})
    rows = grade(
        tmp_path / "submissions", tmp_path / "grades", workers=2, course=ROOT, seed=4711, timeout=300,
        unsafe_no_sandbox=True, progress=False,
    )  # fmt: skip
    assert len(rows) == len(expected) + len(names)
    for page in (tmp_path / "grades" / "feedback").iterdir():
        assert "cannot be judged" not in page.read_text(encoding="utf-8"), page.name
    for row in rows:
        answer = expected.get((row.student, row.exercise))
        if answer is None:
            assert (row.score, row.status) == (0, "not attempted")
        elif not answer.check:
            assert (row.score, row.status) == (exercise(row.exercise).points, "ok"), (answer.name, row)
        else:
            assert row.score < row.max_score and row.status == "failed", (answer.name, row)
            assert row.message.startswith(f"✗ {answer.check} (0 of "), (answer.name, row)
            assert answer.phrase in row.message, (answer.name, row)


@pytest.mark.parametrize("name", exercises())
def test_no_answer_is_left_out(name: str) -> None:
    right, wrong = CATALOGUE["answers"](name)
    chosen = some(name)
    assert len({answer.name for answer in chosen}) == 4 and chosen[2].check != chosen[3].check
    assert {answer.name for answer in chosen + others(name)} == {answer.name for answer in (*right, *wrong)}
