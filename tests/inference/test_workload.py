from __future__ import annotations

import pandas as pd
import pytest

from labsupport.inference import LLMEngine, side_by_side
from labsupport.inference.adapters import Adapter, OurEngine
from labsupport.inference.batching_ways import serve_continuously, serve_statically
from labsupport.inference.formats import serve_formats
from labsupport.inference.latecomer import compare_budgets
from labsupport.inference.machine_roof import machine_of, measure_roofline, step_costs
from labsupport.inference.watch import watch_plans
from labsupport.inference.workload import greedy, tokens_per_second, workload
from labsupport.lm import LanguageModel, corpus, evaluation_tokens, load_lm, perplexity


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("tiny", verbose=False)


def test_a_workload_is_held_out_text_of_the_wanted_lengths(lm: LanguageModel) -> None:
    prompts, wanted = workload(lm, 20, prompt=(3, 9), output=(1, 4), seed=1)
    assert (prompts, wanted) == workload(lm, 20, prompt=(3, 9), output=(1, 4), seed=1)
    assert {len(prompt) for prompt in prompts} <= set(range(3, 10)) and set(wanted) <= {1, 2, 3, 4}
    assert all(lm.tokenizer.decode(prompt) in corpus("evaluation") for prompt in prompts)
    engine = LLMEngine(lm, max_num_seqs=4)
    assert [len(each.token_ids) for each in engine.generate(prompts[:3], greedy(5))] == [5, 5, 5]
    assert tokens_per_second(engine, prompts[:4], wanted[:4]) > 0


def test_both_ways_of_batching_give_the_same_answers_in_different_steps(lm: LanguageModel) -> None:
    prompts, _ = workload(lm, 5, prompt=(4, 8))
    wanted = [2, 9, 3, 8, 4]
    engines = [LLMEngine(lm, max_num_seqs=2, enable_prefix_caching=False) for _ in range(2)]
    static = serve_statically(engines[0], prompts, wanted)
    assert static == serve_continuously(engines[1], prompts, wanted)
    assert [len(answer) for answer in static] == wanted
    assert engines[0].stats().num_steps == 9 + 8 + 4 and engines[1].stats().num_steps < 21


def test_every_engine_has_a_row_and_a_missing_one_its_reason(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OurEngine):
        name = "wrong"

        def generate(self, prompts, max_tokens):  # type: ignore[no-untyped-def]
            return [type(each)(each.num_tokens, None, "?") for each in super().generate(prompts, max_tokens)]

    class Absent(OurEngine):
        name = "absent"

        @classmethod
        def missing(cls) -> str:
            return "not installed"

    class Unable(OurEngine):
        name = "unable"

        def __init__(self, *args, **options):  # type: ignore[no-untyped-def]
            raise ValueError("no such thing")

    engines: tuple[type[Adapter], ...] = (OurEngine, Wrong, Absent, Unable)
    monkeypatch.setattr(side_by_side, "ADAPTERS", engines)
    prompts, wanted = workload(lm, 3, prompt=(3, 9), output=(1, 4))
    table = side_by_side.engines_side_by_side(lm, prompts, wanted, batch_size=2)
    assert table["same text as ours"].tolist() == ["3 of 3", "0 of 3", "", ""]
    assert table["note"].tolist() == ["", "", "not installed", "cannot run tiny: no such thing"]


def test_a_budget_bounds_the_tokens_of_a_step_and_changes_no_answer(lm: LanguageModel) -> None:
    table = compare_budgets(lm, (2048, 256, 16), repeats=1)
    assert table["most tokens in a step"].tolist() == [1030, 256, 16]
    assert table["same tokens"].all() and table["steps"].is_monotonic_increasing


def test_the_roof_is_never_exceeded_by_its_own_bound(lm: LanguageModel) -> None:
    table = measure_roofline(lm, length=32)
    machine = machine_of(table)
    assert isinstance(table, pd.DataFrame) and list(table.index) == list(step_costs(lm))
    for (_, row), cost in zip(table.iterrows(), step_costs(lm, 32).values(), strict=True):
        best = max(cost.bytes / machine.bytes_per_second, cost.flops / machine.flops_per_second)
        assert row["ms at best"] == pytest.approx(1e3 * best)
        assert row["share of the roof"] == pytest.approx(row["ms at best"] / row["ms measured"])


def test_formats_are_compared_on_the_same_requests_and_windows(lm: LanguageModel) -> None:
    table = serve_formats(lm, {"float32": None, "4 bits": {"method": "rtn", "bits": 4}}, slots=(1, 2))
    assert table.loc["float32", "perplexity"] == pytest.approx(perplexity(lm.model, evaluation_tokens(lm)))
    assert table.loc["float32", "perplexity"] < table.loc["4 bits", "perplexity"]
    assert table.loc["float32", "MB"] > 4 * table.loc["4 bits", "MB"]
    assert (table[["tokens/s, 1 at a time", "tokens/s, 2 at a time"]] > 0).all(axis=None)


def test_a_watched_engine_tells_its_plans(lm: LanguageModel) -> None:
    engine = LLMEngine(lm, max_num_seqs=2, enable_prefix_caching=False)
    plans = watch_plans(engine)
    engine.generate([[5] * 10, [6] * 4], greedy(3))
    assert [plan.num_tokens for plan in plans] == [14, 2, 2]
