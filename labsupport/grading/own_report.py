"""What `labsupport check` and `labsupport progress` print."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from labsupport.grading.reports.csv_safe import points
from labsupport.grading.reports.results import Row
from labsupport.widgets.guesses import Guess, UnreadableGuesses, read_guesses


def show(row: Row) -> str:
    """The verdict of every check, word for word as in the feedback page."""
    lines = [f"{row.exercise}: {points(row.score)} of {points(row.max_score)} points, {row.status}"]
    lines += [f"  {check.message}" for check in row.checks] or [f"  {row.message}"]
    lines += [f"  note: {note}" for note in row.notes]
    lines.append(f"  (public seed; sandbox: {row.isolation or 'no code ran'})")
    return "\n".join(lines)


def show_progress(table: Sequence[tuple[str, Row | None]], most: Mapping[str, int]) -> str:
    """A line an exercise, and their sum.

    Args:
        most: the points of each exercise.
    """
    lines = [f"{'exercise':<28}{'points':>9}  state"]
    for name, row in table:
        score = points(row.score) if row is not None else 0
        state = "no notebook" if row is None else row.status if row.status in ("ok", "not attempted") else row.message
        lines.append(f"{name:<28}{f'{score} / {most[name]}':>9}  {state}")
    total = points(sum(row.score for _, row in table if row is not None))
    lines.append(f"{'all':<28}{f'{total} / {sum(most[name] for name, _ in table)}':>9}")
    return "\n".join(lines)


def show_predictions(folders: Sequence[Path]) -> str:
    """A line for each notebook that asks for predictions: how many were made, and how many of those were right.

    "" if there are none. A number is right within a quarter of what was measured (`Guess.right`).

    Args:
        folders: those that may hold chapters, and the `predictions.json` beside them.
    """
    lines, warnings = [], []
    for folder in dict.fromkeys(path.resolve() for path in folders):
        try:
            guesses = read_guesses(folder)
        except (UnreadableGuesses, OSError) as error:
            warnings.append(f"warning: {error}")
            guesses = []
        for notebook in sorted(folder.glob("*.ipynb")):
            asked = set(_asked(notebook))
            made = [guess for guess in guesses if (guess.key, guess.question) in asked]
            guesses = [guess for guess in guesses if guess not in made]
            if asked:
                lines.append(_counts(notebook.stem, made, f" / {len(asked)}"))
        if guesses:
            lines.append(_counts(f"no longer asked in {folder.name}"[:27], guesses, ""))
    heading = [f"{'predictions':<28}{'made':>9}  right"] if lines else []
    return "\n".join([*heading, *lines, *warnings])


def _counts(name: str, made: Sequence[Guess], of: str) -> str:
    compared = [guess.right for guess in made if guess.right is not None]
    right = f"{sum(compared)} of {len(compared)} compared" if compared else "none compared yet" if made else ""
    return f"{name:<28}{f'{len(made)}{of}':>9}  {right}".rstrip()


def _asked(notebook: Path) -> Iterator[tuple[str, str]]:
    """(key, question) of every `predict` in a notebook; nothing where it cannot be read."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    for source in sources:
        if "predict(" not in source:
            continue
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "predict":
                given = [each.value for each in node.args if isinstance(each, ast.Constant)]
                if len(given) == 2:
                    yield str(given[0]), " ".join(str(given[1]).split())
