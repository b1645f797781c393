"""An answer that stands in another cell than the one it was asked in: found, used and named."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from labsupport.checks.source import answered, looks_like_defining, stands_in, syntax_error
from labsupport.grading.intake.cell_code import defined_functions, defined_names, same_code


@dataclass(frozen=True)
class Elsewhere:
    """Positions of the cells that hold what an answer cell lacks."""

    whole: int | None = None  # takes the place of the answer cell
    also: tuple[int, ...] = ()  # run after the answers
    notes: tuple[str, ...] = ()


def find_elsewhere(
    sources: Sequence[str],
    given: Collection[int],
    stub: str,
    answer: int | None,
    answers: Collection[int],
    later: Collection[int],
) -> Elsewhere:
    """Where the functions of ``stub`` are defined that the answer cell does not define.

    Args:
        sources: of all code cells of the submission.
        given: positions of those that are as they were given out.
        answer: the position of this answer cell, None if there is none.
        answers: the positions of all answer cells.
        later: of those that run after this one.
    """
    wanted = defined_functions(stub)
    written = "" if answer is None else sources[answer]
    if syntax_error(written) is not None:
        return Elsewhere()  # the student's answer, though Python cannot read it
    stubs = defined_functions(written) - answered(written)
    missing = sorted(name for name in wanted if name in stubs or name not in defined_names(written))
    candidates = [index for index in range(len(sources)) if index != answer and index not in given]
    if not missing:
        return Elsewhere()
    if set(missing) == wanted and (answer is None or same_code(written, stub)):
        cell = _last(sources, [i for i in candidates if i not in answers], missing)
        if cell is not None:
            return Elsewhere(whole=cell, notes=(_graded(missing, cell, answer),))
    cells = {name: cell for name in missing if (cell := _last(sources, candidates, [name])) is not None}
    notes = [_graded([n for n in cells if cells[n] == cell], cell, answer) for cell in sorted(set(cells.values()))]
    return Elsewhere(also=tuple(sorted(set(cells.values()) - set(later))), notes=tuple(notes))


def _last(sources: Sequence[str], candidates: Sequence[int], names: Sequence[str]) -> int | None:
    """The last cell that defines all ``names``; else the last one that would, were it not for a syntax error."""
    real = [i for i in candidates if set(names) <= answered(sources[i])]
    broken = [
        i for i in candidates
        if all(looks_like_defining(sources[i], name) for name in names) and syntax_error(sources[i]) is not None
    ]  # fmt: skip
    return real[-1] if real else broken[-1] if broken else None


def _graded(names: Sequence[str], cell: int, answer: int | None) -> str:
    advice = "" if answer is None else ", but move it into the answer cell"
    return f"{stands_in(names, cell, answer)}; it was graded all the same{advice}"
