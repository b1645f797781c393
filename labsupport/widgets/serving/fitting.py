"""The duration of a step, fitted to the steps of real engines while they serve: what the load curve is drawn with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from labsupport.inference.engine import LLMEngine
from labsupport.inference.request import RequestOutput
from labsupport.inference.scheduler import Plan
from labsupport.widgets.serving.server import StepSeconds


class TimedEngine(LLMEngine):
    """Notes each step: the seconds until the next one begins, its prompt tokens, its decoding rows.

    While there is work, what happens between two steps (tokens are handed over, requests read) counts with the first.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.notes: list[list[float]] = []
        self._began: float | None = None
        self._plan = Plan()
        schedule = self.scheduler.schedule

        def noted() -> Plan:
            self._plan = schedule()
            return self._plan

        self.scheduler.schedule = noted  # type: ignore[method-assign]

    def step(self) -> list[RequestOutput]:
        start = time.perf_counter()
        if self._began is not None:
            self.notes[-1][0] = start - self._began
        outputs = super().step()
        prompt_tokens = sum(len(chunk.token_ids) for chunk in self._plan.chunks)
        self.notes.append([time.perf_counter() - start, prompt_tokens, len(self._plan.decodes)])
        self._began = start if self.has_unfinished else None
        return outputs


def fit_steps(notes: Sequence[Sequence[float]]) -> StepSeconds:
    """Least squares over notes of (seconds, prompt tokens, decoding rows); the slowest 2 % are left out as hiccups.

    Raises:
        ValueError: fewer than ten notes.
    """
    if len(notes) < 10:
        raise ValueError(f"notes must hold at least 10 steps; got {len(notes)}")
    table = torch.tensor(notes, dtype=torch.float64)
    seconds, prompt_tokens, rows = table[table[:, 0] <= table[:, 0].quantile(0.98)].T
    columns = torch.stack([torch.ones_like(rows), prompt_tokens, rows], 1)
    found = torch.linalg.lstsq(columns, seconds).solution
    return StepSeconds(*found.clamp(min=1e-6).tolist())
