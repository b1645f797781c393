"""What the notebook that runs a check can tell about a missing answer: a cell with a syntax error, or the wrong cell.

A check is given functions and knows no cells. IPython keeps the source of every cell that has run, by the number that
stands beside it, and the notebook is a file that can be read as it was last saved. Outside of IPython nothing is known.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labsupport.checks.source import answered, elsewhere, looks_like_defining, stands_in, syntax_error


def unread_cell(names: Sequence[str]) -> str | None:
    """Why the newest definition of one of ``names`` never came into effect: its cell has a syntax error."""
    for name in names:
        for number, source in reversed(_cells()):
            if not looks_like_defining(source, name):
                continue
            problem = syntax_error(source)
            if problem is None:
                break
            return f"cell [{number}], which defines {name}, has a syntax error in {problem}"
    return None


def misplaced(names: Sequence[str], exercise: str) -> str | None:
    """Where the answer stands, if the cell that defines one of ``names`` last is a stub, and another cell is not."""
    history = _cells()
    for name in names:
        defining = [(number, source) for number, source in history if looks_like_defining(source, name)]
        real = [number for number, source in defining if name in answered(source)]
        if real and defining[-1][0] != real[-1]:
            return (
                f"your {name} stands in cell [{real[-1]}], but the answer cell, still as it was given out, ran after "
                f"it (as [{defining[-1][0]}]) and took its place: move your code into the answer cell"
            )
        saved = _saved(exercise)
        answer = next(
            (i for i, (tags, source) in enumerate(saved) if "answer" in tags and looks_like_defining(source, name)),
            None,
        )
        found = elsewhere([source for _, source in saved], answer, name)
        if found is not None and answer is not None and name not in answered(saved[answer][1]):
            return (
                f"{stands_in([name], found, answer)}, which is as it was given out: move your code into the answer cell"
            )
    return None


def hint_at_missing_names(result: Any) -> None:
    """After a check cell that ended with a NameError: why there is no such name. IPython calls it after every cell."""
    error = getattr(result, "error_in_exec", None)
    source = getattr(getattr(result, "info", None), "raw_cell", None)
    if isinstance(error, NameError) and isinstance(error.name, str) and isinstance(source, str) and ".check_" in source:
        print(f"✗ {unread_cell([error.name]) or f'there is no {error.name} yet: run the answer cell that defines it'}")


def watch() -> None:
    """Have `hint_at_missing_names` called, once, if this is a notebook."""
    shell = _shell()
    if shell is not None and hint_at_missing_names not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", hint_at_missing_names)


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _cells() -> list[tuple[int, str]]:
    """(number, source without magics) of the cells that have run, in order; the last is the one that runs now."""
    manager = getattr(_shell(), "history_manager", None)
    sources = getattr(manager, "input_hist_parsed", [])
    return [(number, source) for number, source in enumerate(sources) if isinstance(source, str) and source]


def _saved(exercise: str) -> list[tuple[list[str], str]]:
    """(tags, source) of the code cells of the notebook as last saved; none where the file is not known."""
    named = (getattr(_shell(), "user_ns", {}).get("__vsc_ipynb_file__"), os.environ.get("JPY_SESSION_NAME"))
    paths = [Path(Path(str(name)).name) for name in named if name]
    alone = sorted(Path().glob(f"{exercise}*.ipynb"))
    path = next((path for path in paths if path.is_file()), alone[0] if len(alone) == 1 else None)
    if _shell() is None or path is None:
        return []
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [(list(cell["metadata"].get("tags", [])), "".join(cell["source"])) for cell in code]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
