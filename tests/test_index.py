"""README's index (algorithm, file, paper, section, test) and the package's docstring: the same, true, and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from imports import modules

import labsupport

CHAPTERS = ("quantization", "pruning", "distillation", "kvcache", "inference", "serving")
NOTEBOOKS = {
    "1": ("01_quantization",),
    "2": ("02_pruning_distillation",),
    "3": ("03_kv_cache",),
    "4": ("04a_inference_engine", "04b_serving"),
}

# Files with a public name or a paper that are no algorithm of their own, and the listed file that they belong to.
PARTS = {
    "quantization/model.py": "quantization/gptq.py",  # this and every other method, on a whole model
    "quantization/layers/int4_weight.py": "quantization/fast/int4.py",
    "quantization/layers/int8_weight.py": "quantization/fast/int8_weight.py",
    "quantization/fast/triton_int8.py": "quantization/fast/int8.py",
    "lm/rope.py": "lm/model.py",
    "pruning/model.py": "pruning/wanda.py",  # this and every other method, on a whole model
    "pruning/budgets.py": "pruning/iterative.py",
    "pruning/pruner.py": "pruning/iterative.py",
    "pruning/resize.py": "pruning/structured.py",
    "distillation/classifier.py": "distillation/pipeline.py",
    "distillation/digits.py": "distillation/distiller.py",
    "distillation/measuring.py": "distillation/pipeline.py",
    "kvcache/batch.py": "kvcache/attention.py",
    "kvcache/grouped.py": "kvcache/gqa.py",
    "kvcache/triton_attention.py": "kvcache/attention.py",
    "inference/memory.py": "inference/engine.py",
    "inference/penalties.py": "inference/sampling.py",
    "inference/plan.py": "inference/scheduler.py",
    "inference/request.py": "inference/engine.py",
    "inference/runner.py": "inference/engine.py",
    "inference/stats.py": "inference/engine.py",
    "inference/arrivals.py": "inference/simulate.py",
    "inference/timeline.py": "inference/simulate.py",
    "serving/backend.py": "serving/api.py",
    "serving/local.py": "serving/api.py",
}


class Row(NamedTuple):
    algorithm: str
    file: str
    paper: str
    section: str
    test: str


def readme_rows(root: Path) -> list[Row]:
    text = (root / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| algorithm | file |") :].partition("\n\n")[0]
    rows = []
    for line in table.splitlines()[2:]:
        algorithm, file, paper, section, test = (cell.strip() for cell in line.strip("|").split("|"))
        for cell, folder in ((file, "labsupport"), (test, "tests")):
            name, target = re.fullmatch(r"\[(.+)\]\((.+)\)", cell).groups()  # type: ignore[union-attr]
            assert target == f"{folder}/{name}", f"{algorithm}: {cell} leads elsewhere than it says"
        number, notebook = re.fullmatch(r"\[([\d.]+)\]\(notebooks/(.+)\.ipynb\)", section).groups()  # type: ignore[union-attr]
        assert notebook in NOTEBOOKS[number[0]], f"{algorithm}: section {number} is not in {notebook}"
        assert number == number[0] or number in headings(root, notebook), f"{algorithm}: {notebook} has no {number}"
        if paper:
            number_of_paper, target = re.fullmatch(r"\[([\d.]+)\]\((.+)\)", paper).groups()  # type: ignore[union-attr]
            assert target == f"https://arxiv.org/abs/{number_of_paper}"
            paper = number_of_paper
        rows.append(Row(algorithm, linked(file), paper, number, linked(test)))
    return rows


def linked(cell: str) -> str:
    return cell[1 : cell.index("]")]


def docstring_rows() -> list[Row]:
    lines = [line for line in (labsupport.__doc__ or "").splitlines() if line.startswith("    ")]
    starts = [lines[0].index(title) for title in ("Algorithm", "File", "arXiv", "Section", "Test")]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    return [Row(*(line[start:end].strip() for start, end in spans)) for line in lines[1:]]


@pytest.fixture(scope="module")
def rows(root: Path) -> list[Row]:
    return readme_rows(root)


def test_both_tables_say_the_same(rows: list[Row]) -> None:
    assert docstring_rows() == rows


def test_files_and_tests_exist_and_the_paper_stands_in_the_file(rows: list[Row], root: Path) -> None:
    for row in rows:
        source = (root / "labsupport" / row.file).read_text(encoding="utf-8")
        assert row.paper in source, f"{row.file} does not name arXiv {row.paper}"
        assert (root / "tests" / row.test).is_file(), row.test
    assert len({row.algorithm for row in rows}) == len({row.file for row in rows}) == len(rows) >= 40


def test_the_test_imports_from_the_file(rows: list[Row], root: Path) -> None:
    """Directly, or through the package that hands the name on."""
    for row in rows:
        folder = row.file.rpartition("/")[0].replace("/", ".")
        module = f"labsupport.{row.file.removesuffix('.py').replace('/', '.')}"
        text = (root / "tests" / row.test).read_text(encoding="utf-8")
        package = rf"from labsupport\.{re.escape(folder.split('.')[0])}[\w.]* import"
        assert module in text or re.search(package, text), f"{row.test} imports nothing of {row.file}"


def headings(root: Path, notebook: str) -> set[str]:
    """The numbers of a notebook's sections."""
    cells = json.loads((root / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return set(re.findall(r"^#+ (\d+\.\d+) ", text, re.MULTILINE))


def test_every_notebook_has_the_sections_of_its_chapter(root: Path) -> None:
    """And no number stands in both halves of a chapter."""
    assert {path.stem for path in (root / "notebooks").glob("*.ipynb")} == {
        n for names in NOTEBOOKS.values() for n in names
    }
    for number, notebooks in NOTEBOOKS.items():
        found = [section for notebook in notebooks for section in headings(root, notebook)]
        assert found and len(set(found)) == len(found)
        assert {section.split(".")[0] for section in found} == {number}


def test_no_algorithm_is_missing(rows: list[Row], root: Path) -> None:
    """Whatever names a paper, and whatever a chapter's package hands on, is in the index or part of what is."""
    listed = {row.file for row in rows}
    wanted = set()
    for path in modules(root).values():
        file = path.relative_to(root / "labsupport").as_posix()
        if path.stem != "__init__" and re.search(r"arxiv", path.read_text(encoding="utf-8"), re.IGNORECASE):
            wanted.add(file)
    for package in CHAPTERS:
        stub = (root / "labsupport" / package / "__init__.pyi").read_text(encoding="utf-8")
        wanted |= {
            f"{package}/{name.replace('.', '/')}.py" for name in re.findall(r"^from \.([\w.]+) import", stub, re.M)
        }
    wanted = {file for file in wanted if (root / "labsupport" / file).is_file()}
    assert wanted - listed - set(PARTS) == set(), "add it to the index, or say in PARTS what it is part of"
    assert set(PARTS) <= wanted - listed, "PARTS names what is not there, or is listed"
    assert set(PARTS.values()) <= listed
