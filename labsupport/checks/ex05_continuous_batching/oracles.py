"""The right schedule."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from labsupport.checks.ex05_continuous_batching.reading import Steps


def right_schedule(inputs: Mapping[str, Any]) -> Steps:
    """The right schedule, found without a scheduler: in order, each request takes the slot that is free first."""
    free = [1] * inputs["slots"]  # the step from which each slot is free
    steps: Steps = [[] for _ in range(inputs["steps"])]
    for added, request_id, num_tokens in inputs["requests"]:
        start = max(added, heapq.heappop(free))
        heapq.heappush(free, start + num_tokens)
        for number in range(start, start + num_tokens):
            steps[number - 1].append(request_id)
    return steps
