from __future__ import annotations

import random

import pytest

from labsupport.inference import SamplingParams
from labsupport.lm import load_lm
from labsupport.widgets.serving import TimedEngine, fit_steps


def test_the_fit_finds_the_costs_that_made_the_steps() -> None:
    draw = random.Random(0)
    notes = [[0.0, draw.randint(0, 64), draw.randint(1, 16)] for _ in range(200)]
    for note in notes:
        note[0] = 0.01 + 2e-4 * note[1] + 5e-4 * note[2]
    notes[7][0] = 5.0  # a hiccup
    cost = fit_steps(notes)
    assert (cost.base, cost.per_prompt_token, cost.per_row) == pytest.approx((0.01, 2e-4, 5e-4), rel=1e-6)
    with pytest.raises(ValueError, match="notes"):
        fit_steps(notes[:9])


def test_an_engine_notes_what_each_of_its_steps_did() -> None:
    engine = TimedEngine(load_lm("tiny", verbose=False), max_num_seqs=2, enable_prefix_caching=False)
    engine.generate(["abcd", "efghij"], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))
    assert [note[1:] for note in engine.notes] == [[10, 0], [0, 2], [0, 2]]
    assert all(note[0] > 0 for note in engine.notes)
