from __future__ import annotations

import asyncio

from labsupport.inference import LLMEngine
from labsupport.lm import LanguageModel
from labsupport.serving.load.measure import measure_server
from labsupport.serving.load.workload import plan_requests
from labsupport.widgets.serving.load import MEASURED_COLUMNS


def test_a_row_has_what_the_load_curve_draws(tiny: LanguageModel) -> None:
    planned = plan_requests(6, 200.0, "uniform:8:16", "uniform:4:8")
    engine = LLMEngine(tiny, max_num_seqs=1, enable_prefix_caching=False)
    row = asyncio.run(measure_server(engine, 1, planned, 200.0))
    assert set(MEASURED_COLUMNS) <= set(row)
    assert (row["max_num_seqs"], row["max_waiting"], row["rate"]) == (1, 1, 200.0)
    assert 0 <= row["refused"] < 1 and row["whole_answer_p95"] >= row["first_token_p50"] > 0
