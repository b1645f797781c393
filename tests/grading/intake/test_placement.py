"""An answer in another cell than the one it was asked in is found, runs, and is named. No code runs here."""

from __future__ import annotations

import json

import pytest

from labsupport.grading.intake.notebook import Submission, read_submission

F, G = "def f(x):\n    return 1", "def g(x):\n    return 2"
STUB_F, STUB_G = (source.replace(source[-8:], "raise NotImplementedError") for source in (F, G))
BROKEN = "def f(x):\n    return (1"


def code(name: str, source: str, *tags: str) -> dict:
    return {"cell_type": "code", "id": name, "metadata": {"tags": list(tags)}, "source": source}


def written(*cells: dict) -> bytes:
    return json.dumps({"cells": list(cells)}).encode()


ONE_EACH = written(code("setup", "import torch"), code("a", STUB_F, "answer"), code("b", STUB_G, "answer"))
BOTH = written(code("setup", "import torch"), code("a", f"{STUB_F}\n\n{STUB_G}", "answer"))


def runs(read: Submission) -> dict:
    """What the functions are in the end, as grading runs the cells in their order."""
    namespace: dict = {}
    for _, source in read.cells[1:]:
        exec(source, namespace)
    return {name: namespace[name](0) for name in "fg"}


@pytest.mark.parametrize(("pristine", "cells", "note"), [
    (ONE_EACH, [code("a", STUB_F), code("x", F), code("b", G)],
     "your f stands in code cell 2 of the notebook, below the answer cell (code cell 1)"),
    (ONE_EACH, [code("x", F), code("b", G), code("a", STUB_F)],
     "your f stands in code cell 1 of the notebook, above the answer cell (code cell 3)"),
    (ONE_EACH, [code("a", f"{F}\n\n{G}"), code("b", STUB_G)],
     "your g stands in code cell 1 of the notebook, above the answer cell (code cell 2)"),
    (ONE_EACH, [code("a", STUB_F), code("b", f"{F}\n\n{G}")],
     "your f stands in code cell 2 of the notebook, below the answer cell (code cell 1)"),
    (BOTH, [code("a", f"{F}\n\n{STUB_G}"), code("x", G)],
     "your g stands in code cell 2 of the notebook, below the answer cell (code cell 1)"),
    (BOTH, [code("x", G), code("a", F)],
     "your g stands in code cell 1 of the notebook, above the answer cell (code cell 2)"),
    (BOTH, [code("a", f"{STUB_F}\n\n{STUB_G}"), code("x", f"{F}\n\n{G}")],
     "your f and g stand in code cell 2 of the notebook, below the answer cell (code cell 1)"),
    (BOTH, [code("a", f"{STUB_F}\n\n{STUB_G}"), code("x", F), code("y", "f(3)"), code("z", G)],
     "your g stands in code cell 4 of the notebook, below the answer cell (code cell 1)"),
    (ONE_EACH, [code("x", F), code("b", G)], "which is not marked as the answer cell"),
], ids=range(9))  # fmt: skip
def test_it_is_found_runs_and_is_named(pristine, cells, note):
    read = read_submission(written(*cells), pristine)
    assert runs(read) == {"f": 1, "g": 2} and read.attempted
    assert any(note in each and "it was graded all the same" in each for each in read.notes)


@pytest.mark.parametrize("answer", [
    "f = lambda x: 1", "from math import floor as f", "if True:\n    def f(x):\n        return 1", F,
])  # fmt: skip
def test_an_answer_in_its_own_cell_is_the_one_that_counts(answer):
    scratch = code("x", "def f(x):\n    return 'an older try'")
    read = read_submission(written(code("a", answer), code("b", G), scratch), ONE_EACH)
    assert read.answers["a"] == answer and len(read.cells) == 3 and read.notes == ()


def test_a_syntax_error_in_an_answer_is_known_by_its_cell():
    read = read_submission(written(code("a", BROKEN), code("b", G), code("x", F)), ONE_EACH)
    assert read.syntax_errors == {"a": "line 2, `return (1`: '(' was never closed"}
    assert read.answers["a"] == BROKEN and read.notes == ()  # what stands in the answer cell was meant


def test_a_syntax_error_in_an_answer_elsewhere_is_an_attempt_too():
    read = read_submission(written(code("a", STUB_F), code("b", STUB_G), code("x", BROKEN)), ONE_EACH)
    assert read.attempted and set(read.syntax_errors) == {"a"} and "code cell 3" in read.notes[0]


def test_a_scratch_cell_that_is_given_out_is_no_answer():
    pristine = written(code("a", STUB_F, "answer"), code("example", "def f(x):\n    return 'an example'"))
    assert not read_submission(pristine, pristine).attempted
