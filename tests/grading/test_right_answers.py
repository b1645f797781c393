"""Right answers keep full marks whatever they print, wherever they were written, and however the notebook looks."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attacks.world import RIGHT, ROOT, cell, notebook

from labsupport.grading.grade import grade

NUMPY = """
import numpy as np
import torch

def quantize_int8(x, axis=None):
    values = x.float().numpy()
    others = None if axis is None else tuple(d for d in range(values.ndim) if d != axis % values.ndim)
    scale = np.maximum(np.abs(values).max(axis=others, keepdims=axis is not None), 1e-12) / np.float32(127)
    return torch.tensor(np.clip(np.rint(values / scale), -127, 127)).to(torch.int8), torch.tensor(scale)
"""
HELPER = RIGHT.split("def dequantize")[0].replace("x.abs().max()", "largest(x)")


def answered(quantize: str = RIGHT, dequantize: str = RIGHT) -> dict:
    return notebook({"answer-quantize": quantize, "answer-dequantize": dequantize})


def own(source: str, name: str = "my-own-cell") -> dict:
    return {"cell_type": "code", "id": name, "metadata": {}, "source": source, "outputs": [], "execution_count": None}


def without_ids(read: dict, minor: int = 4) -> dict:
    read["nbformat_minor"] = minor
    for each in read["cells"]:
        del each["id"]
    return read


def prints() -> dict:
    return answered("print('hello')\n" + RIGHT.replace("    x = x.float()", "    print(x)\n    x = x.float()"))


def warns() -> dict:
    warning = (
        "    import warnings; warnings.warn('mind'); import sys; print('oops', file=sys.stderr)\n    x = x.float()"
    )
    return answered(RIGHT.replace("    x = x.float()", warning))


def plots() -> dict:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\n"
    inside = RIGHT.replace("    x = x.float()", "    plt.figure(); plt.hist([1]); plt.show()\n    x = x.float()")
    return answered("%matplotlib inline\n" + plot + inside)


def displays_and_magics() -> dict:
    return answered(
        "%time 1 + 1\n!echo hello\nfrom IPython.display import display, HTML\ndisplay(HTML('x'))\n"
        + RIGHT
        + "\nIn, Out, _"
    )


def awaits_at_the_top() -> dict:
    return answered("import asyncio\nawait asyncio.sleep(0)\n" + RIGHT)


def uses_numpy() -> dict:
    return answered(NUMPY)


def uses_the_course_package() -> dict:
    return answered("from labsupport.quantization import choose_qparams\n" + RIGHT)


def has_more_cells() -> dict:
    read = answered()
    read["cells"].insert(5, own("1 / 0"))
    read["cells"] += [own("while True: pass", "never-run"), own("%%bash\nexit 1", "bash")]
    return read


def helper_in_a_cell_of_its_own() -> dict:
    read = answered(HELPER)
    read["cells"].insert(2, own("def largest(x):\n    return top(x.abs())"))
    read["cells"].insert(2, own("def top(x): return x.max()", "another"))
    return read


def import_added_to_the_setup_cell() -> dict:
    read = answered(HELPER.replace("import torch", "").replace("largest(x)", "xx.amax(x.abs())"))
    cell(read, "setup-imports")["source"] = "import torch\nimport torch as xx\nfrom labsupport.checks import ex01"
    return read


def answer_in_a_cell_of_its_own() -> dict:
    read = json.loads((ROOT / "exercises" / "ex01_int8_symmetric.ipynb").read_text())
    read["cells"].append(own(RIGHT))
    return read


def reordered() -> dict:
    read = answered()
    read["cells"].reverse()
    return read


def answers_duplicated() -> dict:
    read = answered()
    read["cells"].append(copy.deepcopy(cell(read, "answer-quantize")))
    stub = json.loads((ROOT / "exercises" / "ex01_int8_symmetric.ipynb").read_text())
    read["cells"].append(cell(stub, "answer-quantize"))
    return read


def checks_deleted() -> dict:
    read = answered()
    read["cells"] = [each for each in read["cells"] if not each.get("id", "").startswith("check")]
    return read


def from_colab() -> dict:
    read = answered()
    for each in read["cells"]:
        each["metadata"] = {"id": each["id"], "colab": {"base_uri": "https://localhost:8080/"}, "outputId": "x"}
    read["metadata"] = {"colab": {"provenance": []}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return without_ids(read, 0)


def from_colab_with_new_ids() -> dict:
    read = answered()
    for number, each in enumerate(read["cells"]):
        each["metadata"]["id"] = f"aBc{number}"
    return without_ids(read, 0)


def from_vs_code() -> dict:
    read = answered()
    for each in read["cells"]:
        each["metadata"]["vscode"] = {"languageId": "python"}
        each["source"] = "".join(each["source"]).splitlines(keepends=True)
    return read


def nbformat_4_2() -> dict:
    return without_ids(answered(), 2)


def nbformat_4_without_ids_and_tags() -> dict:
    read = without_ids(answered(), 2)
    for each in read["cells"]:
        each["metadata"] = {}
    return read


def nbformat_3() -> dict:
    cells = []
    for each in without_ids(answered())["cells"]:
        each["input" if each["cell_type"] == "code" else "source"] = each.pop("source")
        cells.append({**each, "language": "python", "collapsed": False, "prompt_number": 1})
    return {
        "nbformat": 3,
        "nbformat_minor": 0,
        "metadata": {"name": ""},
        "worksheets": [{"cells": cells, "metadata": {}}],
    }


def default_dtype_changed() -> dict:
    return answered("import torch\ntorch.set_default_dtype(torch.float64)\ntorch.manual_seed(1)\n" + RIGHT)


def ends_with_an_error() -> dict:
    return answered(RIGHT + "\nassert False, 'my own test'")


def has_windows_line_ends() -> dict:
    return answered(RIGHT.replace("\n", "\r\n"))


def unicode_names() -> dict:
    return answered(RIGHT.replace("others", "übrige"))


VARIANTS = [
    prints, warns, plots, displays_and_magics, awaits_at_the_top, uses_numpy, uses_the_course_package, has_more_cells,
    helper_in_a_cell_of_its_own, import_added_to_the_setup_cell, answer_in_a_cell_of_its_own, reordered,
    answers_duplicated, checks_deleted, from_colab, from_colab_with_new_ids, from_vs_code, nbformat_4_2,
    nbformat_4_without_ids_and_tags, nbformat_3, default_dtype_changed, ends_with_an_error, has_windows_line_ends,
    unicode_names,
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("right")
    for write in VARIANTS:
        path = folder / "submissions" / write.__name__ / "ex01_int8_symmetric.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(json.dumps(write()).encode())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Notepad writes it
    graded = grade(
        folder / "submissions", folder / "grades", workers=2, course=ROOT, unsafe_no_sandbox=True, progress=False
    )
    return {row.student: row for row in graded}


@pytest.mark.parametrize("name", [write.__name__ for write in VARIANTS])
def test_a_right_answer_keeps_full_marks(name: str, rows: dict) -> None:
    assert (rows[name].score, rows[name].status) == (10, "ok"), rows[name]
    assert rows[name].message == "all 6 checks hold"


def test_what_was_taken_from_elsewhere_is_said(rows: dict) -> None:
    assert "own cells ran too" in " ".join(rows["helper_in_a_cell_of_its_own"].notes)
    assert "your quantize_int8 stands in code cell" in " ".join(rows["answer_in_a_cell_of_its_own"].notes)
    assert "cells have the id answer-quantize" in " ".join(rows["answers_duplicated"].notes)
    assert rows["prints"].notes == rows["reordered"].notes == rows["has_more_cells"].notes == ()
