"""Predicting as a thing one does: `predict` asks before the result, `compare` shows the guess beside what was measured.

    predict("s3-bits", "Perplexity at 3 bits, RTN?")
    predict("s3-winner", "Which is lowest at 3 bits?", choices=("RTN", "AWQ", "GPTQ"))
    compare("s3-winner", "GPTQ")

Core ipywidgets only, so 7.7 (Colab) and 8 both work. The guess is kept in `predictions.json` in the folder where the
kernel runs, which is the notebook's own (`guesses`); without a guess everything works too. A page with no kernel shows
the question as one line of text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from labsupport.widgets.guesses import FILE, Guess, UnreadableGuesses, find_guess, keep_guess, keep_measured
from labsupport.widgets.style import PURPLE

NONE_YET = "Your guess: (run this cell to enter one)"
NO_GUESS = "none yet"
_ASKED: dict[str, Prediction] = {}  # by key, what this kernel has asked: a key means the question asked last


def predict(key: str, question: str, *, choices: Sequence[str] | None = None, unit: str = "") -> None:
    """Ask for a prediction, before the cell that answers it.

    Args:
        key: the name by which `compare` and `guess_line` find the guess, such as "s3-bits".
        question: one short line.
        choices: the possible answers; None asks for a number.
        unit: of the number, such as "MB"; shown behind the field.

    Raises:
        ValueError: there is one choice or none, or two are the same.
    """
    from IPython.display import display

    _ASKED[key] = Prediction(key, question, choices, unit)
    display(_ASKED[key].bundle(), raw=True)


def compare(key: str, measured: str | float) -> None:
    """Show the guess beside what was measured, as a small table; without a guess it holds the measured value alone.

    Raises:
        ValueError: ``measured`` is not one of the choices that `predict` gave, or not a number where it asked for one.
    """
    from IPython.display import display

    asked = _ASKED.get(key)
    value = measured if isinstance(measured, str) else float(measured)
    if asked is not None:
        asked.require_possible(value)
    guess, warning = _look_up(key)
    if guess is not None and isinstance(guess.guess, str) is isinstance(value, str):
        if not isinstance(value, float) or math.isfinite(value):
            try:
                keep_measured(asked.folder if asked else Path.cwd(), guess, value)
            except (UnreadableGuesses, OSError) as error:
                warning = str(error)
    else:
        guess = None
    unit = asked.unit if asked else guess.unit if guess else ""
    with pd.option_context("display.max_colwidth", None):  # a choice may be a sentence
        display(_table(asked.question if asked else key, guess.guess if guess else None, value, unit))
    if warning:
        print(f"warning: {warning}")


def guess_line(axes: Axes, key: str, *, vertical: bool = False) -> Line2D | None:
    """A dashed line at the guess, with "your guess" for the legend; None, and nothing drawn, where there is none.

    The guess is a number on the y axis, or, if ``vertical``, on the x axis. One that lies far outside of what the
    picture shows is not drawn, so that the picture stays readable: call this last.
    """
    guess, _ = _look_up(key)
    if guess is None or isinstance(guess.guess, str):
        return None
    axis = axes.xaxis if vertical else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    position, at = axis.get_transform().transform, float(guess.guess)
    if axis.get_scale() == "log" and at <= 0:
        return None
    bottom, top, here = (float(position(value)) for value in (low, high, at))
    if not bottom - (top - bottom) <= here <= top + (top - bottom):
        return None
    draw = axes.axvline if vertical else axes.axhline
    return draw(at, color=PURPLE, linestyle="--", linewidth=1.5, label="your guess")


class Prediction:
    """One question with its control; the guess is kept as soon as it is given.

    Attributes:
        guess: what was guessed, None before.
        widget: question, control, button and a line that says what is kept.
    """

    def __init__(
        self, key: str, question: str, choices: Sequence[str] | None = None, unit: str = "", folder: Path | None = None
    ) -> None:
        if choices is not None and (isinstance(choices, str) or len(set(choices)) < max(2, len(choices))):
            raise ValueError(f"choices must be two or more different answers, or None, got {choices!r}")
        self.key, self.question, self.unit = key, " ".join(question.split()), unit
        self.choices = None if choices is None else tuple(choices)
        self.folder = Path.cwd() if folder is None else folder
        self.guess: str | float | None = None
        self._trouble = ""  # with the file
        try:
            found = find_guess(self.folder, key, self.question)
            self.guess = found.guess if found and self._possible(found.guess) else None
        except (UnreadableGuesses, OSError) as error:
            self._trouble = str(error)

        self.control = self._control()
        self.button = ipywidgets.Button(description="Keep my guess", layout=ipywidgets.Layout(width="max-content"))
        self.status = ipywidgets.HTML()
        title = ipywidgets.HTML(f"<b>{html.escape(self.question)}</b>")
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center", overflow="visible")
        behind = [ipywidgets.HTML(html.escape(unit))] if unit else []
        self.widget = ipywidgets.VBox(
            [title, ipywidgets.Box([self.control, *behind, self.button], layout=row), self.status]
        )
        self.button.on_click(lambda _: self.keep())
        if self.choices is None:  # Enter, or leaving the field
            self.control.observe(lambda _: self.keep(), names="value")
        self._say()

    @property
    def text(self) -> str:
        """One line for a page without widgets."""
        given = NONE_YET if self.guess is None else f"Your guess: {_shown(self.guess, self.unit)}"
        options = f" ({' / '.join(self.choices)})" if self.choices else ""
        return f"{self.question}{options}  {given}"

    def bundle(self) -> dict[str, Any]:
        """Widget view where a kernel runs, one line of text for everything else."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return {"application/vnd.jupyter.widget-view+json": view, "text/plain": self.text}

    def keep(self) -> None:
        """Take what the control holds as the guess, and write it to the notebook's folder."""
        given = self.control.value if self.choices else _number(self.control.value, self.unit)
        if given is None:
            self._say("choose one first" if self.choices else "write a number, such as 12.5 or 1e6, with a point")
            return
        if given != self.guess:
            self.guess = given
            try:
                self._trouble = keep_guess(self.folder, Guess(self.key, self.question, given, self.unit))
            except OSError as error:
                self._trouble = f"{FILE} cannot be written, so the guess lasts as long as this kernel: {error}"
        self._say()

    def require_possible(self, measured: str | float) -> None:
        """Raises a ValueError if ``measured`` cannot be the answer to this question."""
        if self.choices is not None and measured not in self.choices:
            raise ValueError(f"measured must be one of {', '.join(self.choices)} for {self.key}, got {measured!r}")
        if self.choices is None and isinstance(measured, str):
            raise ValueError(f"measured must be a number for {self.key}, got {measured!r}")

    def _possible(self, guess: str | float) -> bool:
        return guess in self.choices if self.choices is not None else not isinstance(guess, str)

    def _control(self) -> Any:
        if self.choices is not None:
            return ipywidgets.ToggleButtons(options=self.choices, value=self.guess, style={"button_width": "auto"})
        written = "" if self.guess is None else f"{self.guess:g}"
        layout = ipywidgets.Layout(width="120px")
        return ipywidgets.Text(value=written, placeholder="a number", continuous_update=False, layout=layout)

    def _say(self, problem: str = "") -> None:
        given = "" if self.guess is None else f"Your guess: {_shown(self.guess, self.unit)}"
        self.status.value = "".join(
            f'<div role="{role}" aria-live="polite">{html.escape(line)}</div>'
            for role, line in [("status", given), ("alert", self._trouble), ("alert", problem)]
            if line
        )


def _look_up(key: str) -> tuple[Guess | None, str]:
    """The guess, from this kernel or from the file, and what is wrong with the file."""
    asked = _ASKED.get(key)
    if asked is not None:
        return (None if asked.guess is None else Guess(key, asked.question, asked.guess, asked.unit)), ""
    try:
        return find_guess(Path.cwd(), key), ""
    except (UnreadableGuesses, OSError) as error:
        return None, str(error)


def _table(question: str, guess: str | float | None, measured: str | float, unit: str) -> pd.DataFrame:
    row = {"your guess": NO_GUESS if guess is None else _shown(guess, unit), "measured": _shown(measured, unit)}
    if isinstance(guess, Real) and isinstance(measured, float):
        away = guess - measured
        share = f" ({away / abs(measured):+.0%})".replace("%", " %") if measured else ""
        row["difference"] = f"{away:+.4g}{share}"
    return pd.DataFrame([row], index=[question])


def _shown(value: str | float, unit: str) -> str:
    if isinstance(value, str):
        return value
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{digits} {unit}".rstrip()


def _number(text: str, unit: str) -> float | None:
    """What was typed as a number, with or without the unit; None if it is none."""
    plain = text.strip().removesuffix(unit or " ").strip()
    try:
        value = float(plain)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
