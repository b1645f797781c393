"""How long things take, measured so that a comparison holds on a busy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def median_milliseconds(functions: Mapping[str, Callable[[], object]], repeats: int = 15) -> dict[str, float]:
    """Median wall time of each function in milliseconds, after one call to warm up.

    The functions take turns, so that a slow moment of the machine falls on all of them.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1; got {repeats}")
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(measured) for name, measured in times.items()}
