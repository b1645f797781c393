"""Every chapter: sound as a file, and all of its cells run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

import labsupport

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("*.ipynb"))

MACHINE_MADE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f-]*)?")
PRIVATE_PATH = re.compile(r"(?<![\w.~])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/")


COLAB_LACKS = (
    "jaxtyping",
    "wadler-lindig",
    "lazy-loader",
    "gguf",
)  # of all that labsupport imports; see constraints-colab.txt


def by_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


every_notebook = pytest.mark.parametrize("path", CHAPTERS + SOLUTIONS + EXERCISES, ids=by_name)
executed_notebook = pytest.mark.parametrize("path", CHAPTERS + SOLUTIONS, ids=by_name)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def test_there_is_a_chapter() -> None:
    assert CHAPTERS


@every_notebook
def test_format_is_valid_and_new_enough(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)


@every_notebook
def test_each_cell_has_an_id_that_an_author_gave(path: Path) -> None:
    ids = [cell["id"] for cell in read(path).cells]
    assert len(set(ids)) == len(ids)
    assert [each for each in ids if MACHINE_MADE_ID.fullmatch(each)] == []


@every_notebook
def test_no_widget_state_is_stored_and_the_file_is_small(path: Path) -> None:
    assert "widgets" not in read(path).metadata
    assert path.stat().st_size < 1_500_000


@every_notebook
def test_no_path_of_a_machine_is_in_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [match.group() for match in PRIVATE_PATH.finditer(text)] == []


@every_notebook
def test_first_code_cell_is_for_colab(path: Path) -> None:
    source = next(cell.source for cell in read(path).cells if cell.cell_type == "code")
    for part in ('"google.colab" in sys.modules', "--no-deps", labsupport.COURSE_URL, *COLAB_LACKS):
        assert part in source
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, ""), "elsewhere it does nothing"


@executed_notebook
def test_outputs_are_committed_and_none_is_an_error(path: Path) -> None:
    code = [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]
    assert any(cell.outputs for cell in code)
    assert [cell["id"] for cell in code if cell.execution_count is None] == []
    quiet = [cell for cell in code if "raises-exception" not in cell.metadata.get("tags", [])]
    errors = [cell["id"] for cell in quiet if any(output.output_type == "error" for output in cell.outputs)]
    assert errors == []


@executed_notebook
def test_nothing_was_written_to_stderr(path: Path) -> None:
    """A warning in a chapter is noise to its reader, and a difference to nbval."""
    noisy = {
        cell["id"]: output.text[:200]
        for cell in read(path).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    }
    assert noisy == {}


@pytest.mark.parametrize("path", CHAPTERS, ids=by_name)
def test_pictures_can_be_seen_without_a_kernel(path: Path) -> None:
    outputs = [output for cell in read(path).cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    assert any("image/png" in data for data in shown)
    for data in shown:
        if "application/vnd.jupyter.widget-view+json" in data:
            assert len(data["text/plain"]) > 20, "a line for those who do not see the widget"
            assert "image/png" in data or "Your guess: " in data["text/plain"]


@pytest.mark.parametrize("path", CHAPTERS, ids=by_name)
def test_all_cells_run(path: Path) -> None:
    """nbval: no cell fails, and the marked ones give the outputs that are stored."""
    marked = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if marks_output(cell)]
    assert marked, "a chapter marks its key numbers with # NBVAL_CHECK_OUTPUT"
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=600", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--override-ini=addopts=", str(path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-2000:]


def marks_output(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "code" and "NBVAL_CHECK_OUTPUT" in "".join(cell["source"])
