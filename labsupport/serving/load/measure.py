"""One server, one open-loop load test: a row for the load curve's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from labsupport.inference import LLMEngine
from labsupport.serving.api import create_app
from labsupport.serving.load.report import Report
from labsupport.serving.load.tester import run_load
from labsupport.serving.load.workload import Planned
from labsupport.serving.local import serving


async def measure_server(
    engine: LLMEngine, max_waiting: int, planned: Sequence[Planned], rate: float
) -> dict[str, float]:
    """Serve ``planned`` requests, which are due at ``rate`` a second whatever the server does, and report.

    Latencies are seconds at the client, from when a request was due: "first_token_p50", "first_token_p95",
    "whole_answer_p50", "whole_answer_p95"; NaN where nobody was answered. "refused" is a share.
    """
    with serving(create_app(engine, max_waiting=max_waiting)) as url:
        results = await run_load(url, planned, ignore_eos=True)
    report = Report.of(results)
    row = {
        "max_num_seqs": engine.scheduler.max_num_seqs,
        "max_waiting": max_waiting,
        "rate": rate,
        "tokens_per_second": report.tokens_per_second,
        "refused": sum(result.status == 429 for result in results) / len(results),
    }
    latencies = {"first_token": report.time_to_first_token, "whole_answer": report.latency}
    for (name, found), which in product(latencies.items(), ("p50", "p95")):
        row[f"{name}_{which}"] = math.nan if found is None else getattr(found, which)
    return row
