"""How long things take, measured so that a comparison holds on a busy machine, and on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from labsupport.device import synchronize


def median_milliseconds(
    functions: Mapping[str, Callable[[], object]], repeats: int = 15, device: object = "cpu"
) -> dict[str, float]:
    """Median time of each function in milliseconds, after one call to warm up.

    The functions take turns, so that a slow moment of the machine falls on all of them. A GPU returns before it has
    done anything, so it is waited for before and after each call. With ``device`` a CUDA device its own clock is read,
    by events, which leaves out what the host takes to give the work.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1; got {repeats}")
    measure = by_events if str(device).startswith("cuda") else by_wall_clock
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(measure(function))
    return {name: statistics.median(measured) for name, measured in times.items()}


def by_wall_clock(function: Callable[[], object]) -> float:
    """Milliseconds of one call, until every GPU is done with it."""
    synchronize()
    started = time.perf_counter()
    function()
    synchronize()
    return 1e3 * (time.perf_counter() - started)


def by_events(function: Callable[[], object]) -> float:
    """Milliseconds between the first and the last operation of one call on the current CUDA device."""
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
