"""What `labsupport progress` says of predictions."""

from __future__ import annotations

import json

from labsupport.grading.own_report import show_predictions
from labsupport.widgets.guesses import FILE, Guess, keep_guess, keep_measured

CELLS = ['predict("a", "One?")\npredict("b", "Two "\n        "and a half?", choices=("x", "y"))', "predict(", "x = 1"]


def chapter(folder, name, cells):
    folder.mkdir(exist_ok=True)
    code = [{"cell_type": "code", "source": [cell], "metadata": {}} for cell in cells]
    (folder / name).write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "predict("}, *code]}))


def test_made_and_right_predictions_are_counted_by_chapter(tmp_path):
    chapters = tmp_path / "notebooks"
    chapter(chapters, "01_first.ipynb", CELLS)
    chapter(chapters, "02_second.ipynb", ['predict("a", "Another one?")'])
    chapter(chapters, "03_none.ipynb", ["x = 1"])
    (chapters / "04_broken.ipynb").write_text("{")
    assert show_predictions([tmp_path, chapters]).splitlines() == [
        "predictions                      made  right",
        "01_first                        0 / 2",
        "02_second                       0 / 1",
    ]
    for guess, measured in ((Guess("a", "One?", 5.0), 4.0), (Guess("b", "Two and a half?", "x"), "y")):
        keep_guess(chapters, guess)
        keep_measured(chapters, guess, measured)
    keep_guess(chapters, Guess("a", "Another one?", 1.0))
    keep_guess(chapters, Guess("old", "No longer asked?", 1.0))
    assert show_predictions([chapters, chapters]).splitlines()[1:] == [
        "01_first                        2 / 2  1 of 2 compared",
        "02_second                       1 / 1  none compared yet",
        "no longer asked in notebook         1  none compared yet",
    ]


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    assert show_predictions([tmp_path]) == ""
    (tmp_path / FILE).write_text("{")
    assert show_predictions([tmp_path]).startswith("warning: ") and FILE in show_predictions([tmp_path])
