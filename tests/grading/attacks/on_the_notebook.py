"""Attacks on the notebook: cells edited, deleted, duplicated, reordered, retagged; outputs and metadata forged."""

from __future__ import annotations

import copy

from attacks.world import RIGHT, WRONG, cell, edit, notebook

PASSED = {"output_type": "stream", "name": "stdout", "text": "✓ check_scale (2 of 2 points)\n"}
CHECKS = ("check-scale", "check-codes", "check-axis", "check-dequantize", "check-round-trip", "check-edge-cases")


@edit()
def checks_edited_to_print_that_they_hold(read: dict) -> None:
    for name in CHECKS:
        cell(read, name).update(source="print('passed')", outputs=[PASSED], execution_count=1)


@edit()
def checks_deleted(read: dict) -> None:
    read["cells"] = [each for each in read["cells"] if each["id"] not in CHECKS]


@edit()
def checks_behind_script_true(read: dict) -> None:
    for name in CHECKS:
        cell(read, name)["source"] = "%%script true\n" + "".join(cell(read, name)["source"])


@edit()
def checks_tagged_to_be_skipped(read: dict) -> None:
    for name in CHECKS:
        cell(read, name)["metadata"]["tags"] = ["nbval-skip", "raises-exception", "skip-execution"]


@edit()
def checks_retagged_as_answers(read: dict) -> None:
    for name in CHECKS:
        cell(read, name)["metadata"]["tags"] = ["answer"]
        cell(read, name)["source"] = "def quantize_int8(x, axis=None): return 1, 2"


@edit("not attempted")
def outputs_forged_on_the_stub(read: dict) -> dict:
    stub = notebook()
    stub["cells"] = read["cells"]
    for name, names in (
        ("answer-quantize", "quantize_int8(x, axis=None)"),
        ("answer-dequantize", "dequantize_int8(q, scale)"),
    ):
        cell(stub, name)["source"] = f"def {names}:\n    raise NotImplementedError"
    for name in CHECKS:
        cell(stub, name).update(outputs=[PASSED], execution_count=5)
    return stub


@edit()
def answer_cells_duplicated_with_wrong_ones(read: dict) -> None:
    twin = copy.deepcopy(cell(read, "answer-quantize"))
    twin["source"] = WRONG + "# the same id once more\n"
    read["cells"] += [twin, copy.deepcopy(twin)]


@edit()
def cells_reversed(read: dict) -> None:
    read["cells"].reverse()


@edit("failed", "not attempted")
def answers_deleted(read: dict) -> None:
    read["cells"] = [each for each in read["cells"] if not each["id"].startswith("answer")]


@edit()
def ids_of_answers_and_checks_swapped(read: dict) -> None:
    for answer, check in (("answer-quantize", "check-scale"), ("answer-dequantize", "check-dequantize")):
        one, other = cell(read, answer), cell(read, check)
        one["id"], other["id"] = other["id"], one["id"]
        other["source"] = WRONG


@edit()
def metadata_that_claims_points(read: dict) -> None:
    for each in read["cells"]:
        each["metadata"]["nbgrader"] = {
            "grade": True,
            "grade_id": each["id"],
            "points": 1000,
            "solution": True,
            "score": 1000,
        }
    read["metadata"].update(score=10, max_score=10, status="ok", seed=2024)


@edit()
def kernel_of_the_students_own(read: dict) -> None:
    read["metadata"]["kernelspec"] = {
        "name": "../../evil",
        "language": "bash",
        "argv": ["/bin/sh", "-c", "touch /tmp/evil"],
    }
    read["metadata"]["language_info"] = {"name": "bash"}


@edit()
def the_right_answer_in_markdown_and_raw_cells(read: dict) -> None:
    read["cells"] += [
        {"cell_type": kind, "id": "answer-quantize", "metadata": {"tags": ["answer"]}, "source": RIGHT}
        for kind in ("markdown", "raw")
    ]


@edit()
def setup_cell_that_exits(read: dict) -> None:
    cell(read, "setup-imports")["source"] = "import os, torch\nos._exit(0)"


@edit()
def ids_and_sources_of_odd_types(read: dict) -> None:
    read["cells"][:0] = [
        {"cell_type": "code", "id": ["answer-quantize"], "metadata": None, "source": 7, "outputs": {}},
        {"cell_type": "code", "id": None, "metadata": {"tags": "answer", "nbgrader": [1]}, "source": [1, None]},
        {"cell_type": ["code"], "id": {}, "source": {}},
        None, 1, "cell", [],
    ]  # fmt: skip


@edit("failed")
def source_with_surrogates_and_null_bytes(read: dict) -> None:
    cell(read, "answer-quantize")["source"] = "x = '\ud800'\n"
    cell(read, "answer-dequantize")["source"] = "y = 1\0\n"


@edit("failed", "invalid notebook", "memory")
def source_that_exhausts_the_parser(read: dict) -> None:
    cell(read, "answer-quantize")["source"] = "x = " + "(" * 90_000
    cell(read, "answer-dequantize")["source"] = "x = " + "-" * 150_000 + "1"
    extra = [
        "x = 1" + ".real" * 30_000,
        "x = " + "lambda:" * 20_000 + "1",
        "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 500)),
        "x = " + "1 if 1 else " * 15_000 + "1",
        "x = " + "[" * 199 + "]" * 199,
        "f'" + "{" * 5000,
    ]
    read["cells"] += [
        {"cell_type": "code", "id": f"deep-{i}", "metadata": {}, "source": text} for i, text in enumerate(extra)
    ]
