"""A check in a notebook knows its cells: a syntax error in the answer, and an answer in another cell, are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from labsupport.checks import Check, CheckFailed, NotAttempted
from labsupport.checks.history import hint_at_missing_names, watch
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import call

STUB = "def double(x):\n    raise NotImplementedError"
RIGHT = "def double(x):\n    return 2 * x"
BROKEN = "def double(x):\n    return 2 * (x"
ERROR = "has a syntax error in line 2, `return 2 * (x`: '(' was never closed"
RUN = "ex99.check_double(double)"


class CheckDouble(Check):
    name, needs, points, holds = "check_double", ("double",), 3, "twice x"

    def inputs(self, seed: int) -> dict[str, Any]:
        return {"x": 4}

    def run(self, answer, inputs):
        return call(answer["double"], inputs["x"])

    def judge(self, inputs, values) -> None:
        if returned(values, "4") != 8:
            raise Wrong("not twice x")


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A kernel's shell in a notebook's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "NoColor"
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    shell.user_ns["ex99"] = type("ex99", (), {"check_double": CheckDouble()})
    yield shell
    InteractiveShell.clear_instance()


def outcome(shell, *cells: str) -> BaseException | None:
    """What the last of the cells ended with."""
    results = [shell.run_cell(cell, store_history=True) for cell in cells]
    return results[-1].error_before_exec or results[-1].error_in_exec


def test_a_right_answer_passes(shell, capsys):
    assert outcome(shell, STUB, RIGHT, RUN) is None
    assert "✓ check_double (3 of 3 points): twice x" in capsys.readouterr().out


@pytest.mark.parametrize("before", [(), (STUB,), (RIGHT,)], ids=["alone", "after the stub", "after an older answer"])
def test_a_syntax_error_in_the_newest_answer_is_named(shell, before):
    shell.run_cell(RIGHT)  # not in the history: there is something to give to the check
    error = outcome(shell, *before, BROKEN, "1 + 1", RUN)
    assert type(error) is CheckFailed
    assert str(error) == (f"✗ check_double (0 of 3 points): cell [{len(before) + 1}], which defines double, {ERROR}")


def test_once_it_is_mended_the_error_is_forgotten(shell):
    assert outcome(shell, BROKEN, RIGHT, "%time x = 1", RUN) is None


def test_another_function_that_is_tried_out_is_judged_as_it_is(shell):
    tried = "def mine(x):\n    return 2 * x\nex99.check_double(mine)"
    assert outcome(shell, BROKEN, tried) is None


def test_a_name_that_a_syntax_error_left_undefined_is_explained(shell, capsys):
    watch()
    watch()
    assert shell.events.callbacks["post_run_cell"].count(hint_at_missing_names) == 1
    assert isinstance(outcome(shell, BROKEN, RUN), NameError)
    shown = capsys.readouterr().out
    assert shown.count(f"✗ cell [1], which defines double, {ERROR}") == 1
    outcome(shell, "del double\n" if "double" in shell.user_ns else "pass", "ex99.check_double(triple)")
    assert "✗ there is no triple yet: run the answer cell that defines it" in capsys.readouterr().out
    outcome(shell, "triple")
    assert "✗" not in capsys.readouterr().out


def test_an_answer_whose_place_the_stub_took_is_named(shell):
    error = outcome(shell, "1", RIGHT, STUB, RUN)
    assert type(error) is NotAttempted
    assert "your double stands in cell [2], but the answer cell" in str(error) and "ran after it (as [3])" in str(error)


def test_an_empty_answer_is_not_attempted(shell):
    error = outcome(shell, STUB, RUN)
    assert type(error) is NotAttempted and "not attempted yet: fill in the answer cell above" in str(error)


def notebook(*cells: tuple[str, list[str]]) -> str:
    code = [{"cell_type": "code", "source": source, "metadata": {"tags": tags}} for source, tags in cells]
    return json.dumps({"cells": [{"cell_type": "markdown", "source": "#", "metadata": {}}, *code]})


@pytest.mark.parametrize("known_by", ["session", "vscode", "name"])
def test_an_answer_below_that_has_not_run_is_found_in_the_saved_notebook(shell, tmp_path, monkeypatch, known_by):
    name = "test_history (1).ipynb" if known_by == "name" else "mine.ipynb"  # of the module, as for an exercise
    (tmp_path / name).write_text(notebook((STUB, ["answer"]), (RUN, ["check"]), (RIGHT, [])))
    (tmp_path / "another.ipynb").write_text("{")
    if known_by == "session":
        monkeypatch.setenv("JPY_SESSION_NAME", f"course/{name}")
    elif known_by == "vscode":
        shell.user_ns["__vsc_ipynb_file__"] = str(tmp_path / name)
    error = str(outcome(shell, STUB, RUN))
    assert "your double stands in code cell 3 of the notebook, below the answer cell (code cell 1)" in error


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": [3]}', "\udcff", None])
def test_a_notebook_that_cannot_be_read_says_nothing(shell, tmp_path, text):
    if text is not None:
        (tmp_path / "test_history.ipynb").write_bytes(text.encode(errors="surrogateescape"))
    assert "fill in the answer cell above" in str(outcome(shell, STUB, RUN))
