from __future__ import annotations

import pytest

from labsupport.inference.sampling import SamplingParams
from labsupport.serving.stack.job import Job


def test_a_job_survives_the_way_through_json() -> None:
    params = SamplingParams(max_tokens=3, temperature=0.5, seed=7, stop=["a"], stop_token_ids=[3], logprobs=2)
    job = Job("id", "request", "server", [1, 2], params, False)
    assert Job.from_json(job.to_json(), "5-0", 2) == Job("id", "request", "server", [1, 2], params, False, "5-0", 2)
    for text in ("", "[]", "{}", '{"params": {}}', "7"):
        with pytest.raises(ValueError, match="job must be"):
            Job.from_json(text, "5-0", 1)
