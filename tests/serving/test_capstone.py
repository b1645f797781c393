from __future__ import annotations

import asyncio

import pytest

from labsupport.distillation.recover import TINY, prune_for
from labsupport.lm import LanguageModel, evaluation_tokens, perplexity
from labsupport.serving.capstone import SIZES, SPEEDS, UNTOUCHED, capstone, size_and_quality, stages


@pytest.mark.slow
def test_every_stage_is_measured_against_the_untouched_model(tiny: LanguageModel) -> None:
    table = asyncio.run(capstone(tiny, prune_for(tiny, TINY), ((1, 8, 12, 1), (2, 8, 12, 2)), rounds=1))
    assert table.index[0] == UNTOUCHED and set(SIZES + SPEEDS) == set(table.columns)
    assert table.loc[UNTOUCHED, ["smaller", "perplexity, times", "tokens/s, eight, times"]].tolist() == [1, 1, 1]
    assert table["memory, MB"].idxmin() == table.index[-1], "the row that has everything"
    assert (table["weights, MB"] < table["memory, MB"]).all()


def test_rows_that_need_a_recovered_model_are_left_out_without_one(tiny: LanguageModel) -> None:
    assert not [name for name in stages(tiny, None) if "pruned" in name]


def test_an_8_bit_cache_is_counted_and_used(tiny: LanguageModel) -> None:
    float32, eight = size_and_quality(tiny, tiny.model, None), size_and_quality(tiny, tiny.model, 8)
    assert float32["weights, MB"] == eight["weights, MB"] and eight["memory, MB"] < float32["memory, MB"]
    assert float32["perplexity"] == pytest.approx(perplexity(tiny.model, evaluation_tokens(tiny)), rel=1e-4)
    assert 0 < abs(eight["perplexity"] / float32["perplexity"] - 1) < 0.01
