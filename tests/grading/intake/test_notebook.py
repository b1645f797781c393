"""Reading submissions: what is taken, what is refused, and how answers are found. No code runs here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from labsupport.grading.intake.cell_code import defined_functions, defined_names, same_code, used_names
from labsupport.grading.intake.notebook import InvalidNotebook, read_cells, read_file, read_submission

STUBS = {"a": "def f(x):\n    raise NotImplementedError", "b": "def g(x):\n    raise NotImplementedError"}


def code(name: str | None, source: object, tags: tuple[str, ...] = (), **metadata: object) -> dict:
    cell = {"cell_type": "code", "metadata": {"tags": list(tags), **metadata}, "source": source, "outputs": []}
    return cell if name is None else {"id": name, **cell}


def written(*cells: dict) -> bytes:
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells)}).encode()


PRISTINE = written(
    code("setup", "import torch"),
    code("a", STUBS["a"], ("answer", "nbval-ignore-output")),
    code("check", "check(f)", ("check",)),
    code("look", "print(f(1))", ("nbval-ignore-output",)),
    code("b", STUBS["b"], ("answer",)),
)


def test_only_setup_and_answers_run() -> None:
    read = read_submission(
        written(code("a", "def f(x): return 1"), code("b", "def g(x): return 2"), code("c", "evil()")), PRISTINE
    )
    assert read.cells == (("setup", "import torch"), ("a", "def f(x): return 1"), ("b", "def g(x): return 2"))
    assert read.answers == {"a": "def f(x): return 1", "b": "def g(x): return 2"}
    assert read.attempted and read.notes == ()


def test_stubs_are_not_attempted_even_with_comments_and_other_layout() -> None:
    assert not read_submission(PRISTINE, PRISTINE).attempted
    data = written(code("a", "# todo\n" + STUBS["a"] + "\n\n"), code("b", STUBS["b"]))
    assert not read_submission(data, PRISTINE).attempted


def test_a_missing_answer_cell_leaves_the_stub() -> None:
    read = read_submission(written(code("a", "def f(x): return 1")), PRISTINE)
    assert read.answers["b"] == STUBS["b"] and read.attempted
    assert read.notes == ("there is no answer cell b",)


@pytest.mark.parametrize(
    "cells",
    [
        [code(None, "def f(x): return 1", id="a"), code(None, "def g(x): return 2", id="b")],
        [
            code("n1", "def f(x): return 1", nbgrader={"grade_id": "a"}),
            code("n2", "def g(x): return 2", nbgrader={"grade_id": "b"}),
        ],
        [code(None, "def f(x): return 1", ("answer",)), code(None, "def g(x): return 2", ("answer",))],
        [code(None, "def g(x): return 2"), code(None, "def f(x): return 1")],
    ],
    ids=["Colab's ids", "nbgrader's ids", "tags", "what they define"],
)
def test_answers_are_found_without_ids(cells: list[dict]) -> None:
    assert read_submission(written(*cells), PRISTINE).answers == {"a": "def f(x): return 1", "b": "def g(x): return 2"}


def test_of_duplicated_cells_the_last_counts_that_is_not_the_stub() -> None:
    data = written(
        code("a", "def f(x): return 1"), code("a", "def f(x): return 2"), code("a", STUBS["a"]), code("b", STUBS["b"])
    )
    read = read_submission(data, PRISTINE)
    assert read.answers["a"] == "def f(x): return 2"
    assert read.notes == ("3 cells have the id a: the last one that differs from the stub counts",)


def test_own_cells_run_only_if_an_answer_needs_a_name_of_theirs() -> None:
    data = written(
        code("m", "import math"),
        code("h", "def helper(x): return constant * x"),
        code("k", "constant = 3; helper_of_nobody = 1"),
        code("play", "x = f(3)\ntorch = None\nwhile True: pass"),
        code("a", "def f(x): return math.sqrt(helper(x))"),
        code("b", "def g(x): return [helper for helper in x]"),
    )
    read = read_submission(data, PRISTINE)
    assert [source for name, source in read.cells if name.startswith("own-")] == [
        "import math", "def helper(x): return constant * x", "constant = 3; helper_of_nobody = 1",
    ]  # fmt: skip
    assert [name for name, _ in read.cells][-2:] == ["a", "b"]


@pytest.mark.parametrize("line", [
    "from labsupport.checks import asgi", "import labsupport.checks.ex06", "from labsupport import checks as c",
    "ex06.CheckHealth.run = lambda *_: {}", "sys.modules['x']", "gc.get_objects()",
])  # fmt: skip
def test_code_that_names_the_checks_is_pointed_at(line: str) -> None:
    notes = read_submission(written(code("a", f"{line}\ndef f(x): return 1")), PRISTINE).notes
    assert "your code names the course's checks" in notes[-1]


def test_a_variable_may_be_called_checks() -> None:
    answer = "checks = []\ndef f(x):\n    checks.append(x)\n    return x"
    assert read_submission(written(code("a", answer)), PRISTINE).notes == ("there is no answer cell b",)


def test_sources_may_be_lists_of_lines_and_nbformat_3() -> None:
    lines = code("a", ["def f(x):\n", "    return 1"])
    assert read_submission(written(lines), PRISTINE).answers["a"] == "def f(x):\n    return 1"
    old = {
        "nbformat": 3,
        "worksheets": [{"cells": [{"cell_type": "code", "input": "def f(x): return 5", "outputs": []}]}],
    }
    assert read_submission(json.dumps(old).encode(), PRISTINE).answers["a"] == "def f(x): return 5"


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"no json", "not JSON"),
        ('{"cells": "\xe9"}'.encode("latin-1"), "UTF-8"),
        (b"[" * 300_000, "nested too deeply"),
        (b"[[]," * 1_000_000, "more than 2,000,000 values"),
        (b"[]", "no list of cells"),
        (b'{"cells": {}}', "no list of cells"),
        (b'{"worksheets": 3}', "no list of cells"),
        (json.dumps({"cells": [1] * 6000}).encode(), "6000 cells"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
        (written(code("a", "x" * 2_000_000)), "longer than 1024 KiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_notebook_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(InvalidNotebook, match=why):
        read_submission(data, PRISTINE)


def test_odd_cells_are_passed_over() -> None:
    odd: list[object] = [
        None,
        3,
        [],
        {"cell_type": "markdown", "id": "a", "source": "x"},
        code("a", 7),
        code("a", ["x", 1]),
    ]
    assert read_cells(json.dumps({"cells": odd}).encode()) == []


def test_only_regular_files_of_a_sane_size_are_opened(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"data")
    assert read_file(good) == b"data"
    (tmp_path / "link").symlink_to(good)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 32)
    before = len(os.listdir("/proc/self/fd"))
    for name, why in (
        ("link", "symbolic link"),
        ("pipe", "not a regular file"),
        ("folder", "not a regular file"),
        ("huge", "4096 MiB"),
    ):
        with pytest.raises(InvalidNotebook, match=why):
            read_file(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_are_found_without_running() -> None:
    source = """
import os.path as p
from a import b
c = d
def f(x, y=e):
    global g
    g = h(x)
    i = 1
    return i + len(k)
class L: m = n
"""
    assert defined_names(source) == {"p", "b", "c", "f", "g", "L"}
    assert used_names(source) >= {"d", "e", "h", "k", "n"} and not used_names(source) & {"x", "i", "len", "m"}
    assert defined_functions(source) == {"f", "L"}
    assert same_code("x = 1 # one", "x  =  1") and not same_code("x = 1", "x = 2")


@pytest.mark.parametrize(
    "text",
    [
        "(" * 90_000, "-" * 150_000 + "1", "x" + ".a" * 60_000, "lambda:" * 20_000 + "1", "1 if 1 else " * 15_000 + "1",
        "not " * 40_000 + "1", "[" * 5000 + "]" * 5000, "%magic\n!ls", "def", "\0", "\ud800",
    ],
)  # fmt: skip
def test_sources_that_no_parser_takes_define_and_use_nothing(text: str) -> None:
    assert defined_functions(text) == set()
    assert defined_names(text) == set()
    used_names(text)
    assert not same_code(text, "pass")
