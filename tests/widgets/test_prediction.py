"""Predictions without a browser: what is asked, kept, compared and drawn. (tests/browser has one in JupyterLab.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labsupport.widgets import compare, guess_line, new_figure, predict
from labsupport.widgets.guesses import FILE, Guess, UnreadableGuesses, keep_guess, keep_measured, read_guesses
from labsupport.widgets.prediction import _ASKED, NONE_YET, Prediction

NUMBER = ("s3-bits", "Perplexity at 3 bits?")
CHOICE = ("s3-winner", "Which is lowest?")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The notebook's folder, and a kernel that has asked nothing yet."""
    monkeypatch.chdir(tmp_path)
    _ASKED.clear()
    return tmp_path


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what, **options: shown.append(what))
    return shown


def stored(folder: Path) -> list:
    return [(each.key, each.guess) for each in read_guesses(folder)]


def test_without_a_guess_nothing_is_written_and_all_works(folder, displayed):
    predict(*NUMBER)
    compare("s3-bits", 4.0)
    bundle, table = displayed
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert bundle["text/plain"] == f"Perplexity at 3 bits?  {NONE_YET}"
    assert table.to_dict("records") == [{"your guess": "none yet", "measured": "4"}]
    assert guess_line(new_figure()[1], "s3-bits") is None
    assert list(folder.iterdir()) == []


def test_a_number_is_kept_shown_and_compared(folder, displayed):
    predict(*NUMBER, unit="nats")
    asked = _ASKED["s3-bits"]
    asked.control.value = "5 nats"  # Enter
    assert stored(folder) == [("s3-bits", 5.0)] and "Your guess: 5 nats" in asked.status.value
    compare("s3-bits", 4.0)
    assert displayed[-1].to_dict("records") == [
        {"your guess": "5 nats", "measured": "4 nats", "difference": "+1 (+25 %)"}
    ]
    assert list(displayed[-1].index) == ["Perplexity at 3 bits?"]
    (kept,) = read_guesses(folder)
    assert (kept.measured, kept.right, kept.unit) == (4.0, True, "nats")


@pytest.mark.parametrize("text", ["", "3,5", "many", "nan", "inf", "1 MB"])
def test_what_is_no_number_is_said_and_nothing_is_kept(folder, text):
    asked = Prediction(*NUMBER)
    asked.control.value = text
    asked.button.click()
    assert "write a number" in asked.status.value and asked.guess is None
    assert not (folder / FILE).exists()


def test_a_choice_is_kept_by_the_button(folder):
    asked = Prediction(*CHOICE, choices=("RTN", "AWQ"))
    asked.button.click()
    assert "choose one first" in asked.status.value
    asked.control.value = "AWQ"
    assert not (folder / FILE).exists()
    asked.button.click()
    assert stored(folder) == [("s3-winner", "AWQ")] and "choose" not in asked.status.value
    assert asked.text == "Which is lowest? (RTN / AWQ)  Your guess: AWQ"


def test_the_next_kernel_has_the_guess_and_the_last_one_counts(folder, displayed):
    first = Prediction(*CHOICE, choices=("RTN", "AWQ"))
    for answer in ("AWQ", "RTN"):
        first.control.value = answer
        first.button.click()
    assert stored(folder) == [("s3-winner", "RTN")]
    again = Prediction(*CHOICE, choices=("RTN", "AWQ"))
    assert (again.control.value, again.guess) == ("RTN", "RTN") and "Your guess: RTN" in again.status.value
    compare("s3-winner", "AWQ")  # its `predict` cell has not run in this kernel
    assert displayed[-1].to_dict("records") == [{"your guess": "RTN", "measured": "AWQ"}]
    assert read_guesses(folder)[0].right is False


def test_one_key_in_two_chapters_is_two_predictions(folder, displayed):
    keep_guess(folder, Guess("s3", "One?", 1.0))
    keep_guess(folder, Guess("s3", "Two?", 2.0))
    assert (Prediction("s3", "One?").guess, Prediction("s3", "Two?").guess) == (1.0, 2.0)
    assert Prediction("s3", "Three?").guess is None
    compare("s3", 2.0)  # which one is meant is not known without its question
    assert displayed[-1].to_dict("records") == [{"your guess": "none yet", "measured": "2"}]
    predict("s3", "Two?")
    compare("s3", 2.0)
    assert displayed[-1]["your guess"].tolist() == ["2"]
    assert [each.measured for each in read_guesses(folder)] == [None, 2.0]


def test_a_guess_that_no_longer_fits_its_question_is_none(folder):
    keep_guess(folder, Guess(*CHOICE, "SVD"))
    assert Prediction(*CHOICE, choices=("RTN", "AWQ")).guess is None
    assert Prediction(*CHOICE).guess is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"predictions": [3]}', '{"predictions": [{"key": "a"}]}', "\udcff", "null"]
)
def test_a_file_that_cannot_be_read_is_said_and_never_lost(folder, displayed, capsys, content):
    data = content.encode(errors="surrogateescape")
    (folder / FILE).write_bytes(data)
    with pytest.raises(UnreadableGuesses, match="cannot be read as predictions"):
        read_guesses(folder)
    compare("s3-bits", 4.0)
    assert "cannot be read as predictions" in capsys.readouterr().out and len(displayed) == 1
    asked = Prediction(*NUMBER)
    assert "cannot be read" in asked.status.value and (folder / FILE).read_bytes() == data
    (folder / "predictions.unreadable-1.json").write_text("an earlier one")
    asked.control.value = "3"
    asked.button.click()  # leaving the field and the button, as in a browser
    assert "was kept as predictions.unreadable-2.json" in asked.status.value
    assert (folder / "predictions.unreadable-2.json").read_bytes() == data
    assert stored(folder) == [("s3-bits", 3.0)]


@pytest.mark.parametrize("wrong", [{"guess": True}, {"guess": None}, {"measured": []}, {"key": 1}, {"more": 1}])
def test_an_entry_of_another_form_is_not_read(folder, wrong):
    entry = {"key": "a", "question": "b", "guess": 1.0, **wrong}
    (folder / FILE).write_text(json.dumps({"predictions": [entry]}))
    with pytest.raises(UnreadableGuesses):
        read_guesses(folder)


def test_a_folder_that_cannot_be_written_is_said_and_the_guess_still_compares(folder, displayed, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("labsupport.widgets.guesses.write_atomically", refuse)
    predict(*NUMBER)
    _ASKED["s3-bits"].control.value = "3"
    assert "lasts as long as this kernel: read-only file system" in _ASKED["s3-bits"].status.value
    compare("s3-bits", 4)
    assert displayed[-1]["your guess"].tolist() == ["3"]


def test_notebooks_that_write_at_the_same_time_lose_nothing(folder):
    code = """
import sys
from labsupport.widgets.guesses import Guess, keep_guess
for number in range(20):
    keep_guess(".", Guess(f"{sys.argv[1]}-{number}", "?", 1.0))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, name], cwd=folder) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_guesses(folder)) == 40


def test_measured_is_noted_only_beside_a_guess(folder):
    keep_measured(folder, Guess(*NUMBER, 1.0), 2.0)
    assert not (folder / FILE).exists()


@pytest.mark.parametrize(
    ("guess", "measured", "right"),
    [
        (5.0, 4.0, True),
        (5.1, 4.0, False),
        (-5.0, -4.0, True),
        (4.0, -4.0, False),
        (0.0, 0.0, True),
        (1.0, None, None),
        ("a", "a", True),
        ("a", "b", False),
        ("a", 1.0, None),
    ],
)
def test_right_is_the_choice_or_a_quarter_around_the_number(guess, measured, right):
    assert Guess("key", "?", guess, measured=measured).right is right


@pytest.mark.parametrize(
    ("choices", "measured", "message"),
    [(("a", "b"), "c", "measured must be one of a, b"), (("a", "b"), 3.0, "one of a, b"), (None, "c", "a number")],
)
def test_a_measured_value_that_cannot_be_the_answer_is_an_error(displayed, choices, measured, message):
    predict("key", "?", choices=choices)
    with pytest.raises(ValueError, match=message):
        compare("key", measured)


@pytest.mark.parametrize("choices", [(), ("a",), ("a", "a", "b"), "ab"])
def test_choices_must_be_a_choice(choices):
    with pytest.raises(ValueError, match="choices must be two or more"):
        Prediction("key", "?", choices)


def test_the_line_lies_at_the_guess_unless_that_is_far_outside(folder):
    _, axes = new_figure()
    axes.plot([1, 100], [10, 20])
    for guess, drawn in ((15.0, True), (29.0, True), (1e6, False)):
        keep_guess(folder, Guess(*NUMBER, guess))
        line = guess_line(axes, "s3-bits")
        assert (line is not None) is drawn
        if line is not None:
            assert list(line.get_ydata()) == [guess] * 2 and line.get_linestyle() == "--"
            line.remove()
    keep_guess(folder, Guess(*NUMBER, 50.0))
    assert list(guess_line(axes, "s3-bits", vertical=True).get_xdata()) == [50.0] * 2
    axes.set_yscale("log")
    keep_guess(folder, Guess(*NUMBER, -1.0))
    assert guess_line(axes, "s3-bits") is None


def test_text_in_a_question_is_not_markup():
    asked = Prediction("key", "Is a < b & c?\n Or not?", ("<i>", "b"))
    assert "Is a &lt; b &amp; c? Or not?" in asked.widget.children[0].value and "\n" not in asked.text
