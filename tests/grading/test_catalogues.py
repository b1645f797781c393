"""The catalogues of all exercises through the sandbox: full marks for every right answer, less for every wrong one."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from labsupport.checks import exercise, exercises
from labsupport.grading.grade import grade

ROOT = Path(__file__).parents[2]
CATALOGUE = runpy.run_path(str(ROOT / "tests" / "checks" / "catalogue" / "load.py"))


def write(folder: Path, name: str, student: str, cells: dict[str, str]) -> None:
    notebook = json.loads((ROOT / "exercises" / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["id"] in cells:
            cell["source"] = cells[cell["id"]]
    path = folder / student / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.mark.parametrize(
    "names, step",
    [
        pytest.param(
            ["ex01_int8_symmetric", "ex02_kv_cache_size", "ex03_mha_vs_gqa"], 5, id="some of exercises 1 to 3"
        ),
        *(pytest.param([name], 1, id=f"all of {name}", marks=pytest.mark.slow) for name in exercises()),
    ],
)
def test_right_answers_get_full_marks_and_wrong_ones_their_message(names: list[str], step: int, tmp_path: Path) -> None:
    expected = {}
    for name in names:
        right, wrong = CATALOGUE["answers"](name)
        for number, answer in enumerate((*right[::step], *wrong[::step])):
            write(tmp_path / "submissions", name, f"s{number:03}", answer.cells)
            expected[f"s{number:03}", name] = answer
        write(tmp_path / "submissions", name, "stub", {})
    rows = grade(
        tmp_path / "submissions", tmp_path / "grades", workers=2, course=ROOT, seed=4711, timeout=300,
        unsafe_no_sandbox=True, progress=False,
    )  # fmt: skip
    assert len(rows) == len(expected) + len(names)
    for row in rows:
        answer = expected.get((row.student, row.exercise))
        if answer is None:
            assert (row.score, row.status) == (0, "not attempted")
        elif not answer.check:
            assert (row.score, row.status) == (exercise(row.exercise).points, "ok"), (answer.name, row)
        else:
            assert row.score < row.max_score and row.status == "failed", (answer.name, row)
            assert row.message.startswith(f"✗ {answer.check} (0 of ") and answer.phrase in row.message, (
                answer.name,
                row,
            )
