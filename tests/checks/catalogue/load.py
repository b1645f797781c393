"""The catalogue of answers that grade the graders: one module of plain data an exercise.

RIGHT[name] = cells, WRONG[name] = (check, phrase, cells): this check is the first to fail, and its message holds the
phrase. `cells` maps an answer cell's id to its source, or to pairs (old, new) of text to replace in the model answer's
source. Cells that are not named hold the model answer.
"""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Answer:
    exercise: str
    name: str
    cells: dict[str, str]  # answer cell id -> source, in the notebook's order
    check: str = ""  # the first check to fail; "" where all pass
    phrase: str = ""  # in the message of that check

    def __str__(self) -> str:
        return self.name


def model_answer(exercise: str) -> dict[str, str]:
    notebook = json.loads((ROOT / "solutions" / f"{exercise}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if "answer" in cell["metadata"].get("tags", [])]
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def answers(exercise: str) -> tuple[list[Answer], list[Answer]]:
    """The right and the wrong ones."""
    data = runpy.run_path(str(Path(__file__).with_name(f"{exercise}.py")))
    model = model_answer(exercise)
    right = [Answer(exercise, "model answer", model)]
    right += [Answer(exercise, name, _fill(model, cells, name)) for name, cells in data["RIGHT"].items()]
    wrong = [
        Answer(exercise, name, _fill(model, cells, name), check, phrase)
        for name, (check, phrase, cells) in data["WRONG"].items()
    ]
    return right, wrong


def _fill(model: dict[str, str], cells: dict, name: str) -> dict[str, str]:
    filled = dict(model)
    for cell, content in cells.items():
        if cell not in model:
            raise KeyError(f"{name}: no answer cell {cell}")
        if isinstance(content, str):
            filled[cell] = content.strip("\n")
            continue
        for old, new in content:
            if filled[cell].count(old) != 1:
                raise ValueError(f"{name}: {old!r} occurs {filled[cell].count(old)} times in the model answer")
            filled[cell] = filled[cell].replace(old, new)
    return filled
