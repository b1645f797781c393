"""`PerformanceMonitor`: how the last minute went, with percentiles of three latencies that must not be confused.

The window is measured by a clock: "requests per second" divides the requests in the window by the time that the window
really covers, never by a constant in the code. Counts are kept per sixtieth of the window and samples in ring buffers,
so memory is bounded under any load; with more samples than a ring holds, percentiles are those of the newest.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Percentiles:
    """Of ``count`` samples, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float


@dataclass(frozen=True)
class Performance:
    """A summary. None: the window holds nothing to compute it from, or there is no such device.

    Attributes:
        seconds: the time that the window covers; less than its full length while the monitor is young.
        gpus: one dict per GPU, with ``name``, ``utilization`` (0 to 1), ``memory_used`` and ``memory_total`` (bytes).
    """

    seconds: float
    requests: int
    errors: int
    requests_per_second: float | None
    prompt_tokens_per_second: float | None
    generation_tokens_per_second: float | None
    time_to_first_token: Percentiles | None
    inter_token_latency: Percentiles | None
    e2e_latency: Percentiles | None
    gpus: list[dict[str, Any]] | None


class PerformanceMonitor:
    """`record` each request; `summary` covers the last ``window_seconds``.

    Args:
        clock: a monotonic clock, in seconds.
        max_samples: how many samples of each latency are kept.
        gpus: reads the GPUs; its result is None where there is none. Default: `read_gpus`.

    Raises:
        ValueError: the window or the number of samples is not positive.
    """

    def __init__(
        self,
        window_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        max_samples: int = 10_000,
        gpus: Callable[[], list[dict[str, Any]] | None] | None = None,
    ) -> None:
        if not 0 < window_seconds < math.inf:
            raise ValueError(f"window_seconds must be above 0; got {window_seconds}")
        if max_samples < 1:
            raise ValueError(f"max_samples must be at least 1; got {max_samples}")
        self.window_seconds, self.clock = window_seconds, clock
        self._gpus = read_gpus if gpus is None else gpus
        self._start = clock()
        self._slot = window_seconds / 60  # counts are kept for each sixtieth of the window
        self._counts: deque[list[float]] = deque(maxlen=61)  # slot's start, requests, errors, prompt, generation tokens
        self._first: deque[tuple[float, float]] = deque(maxlen=max_samples)
        self._between: deque[tuple[float, float]] = deque(maxlen=max_samples)
        self._whole: deque[tuple[float, float]] = deque(maxlen=max_samples)

    def record(
        self,
        e2e_latency: float | None = None,
        time_to_first_token: float | None = None,
        inter_token: Iterable[float] = (),
        prompt_tokens: int = 0,
        generation_tokens: int = 0,
        error: bool = False,
    ) -> None:
        """A request is over. Latencies are in seconds; None: it has none."""
        now = self.clock()
        counts = self._current(now)
        counts[1] += 1
        counts[2] += error
        counts[3] += prompt_tokens
        counts[4] += generation_tokens
        if time_to_first_token is not None:
            self._first.append((now, time_to_first_token))
        if e2e_latency is not None:
            self._whole.append((now, e2e_latency))
        self._between.extend((now, gap) for gap in inter_token)

    def summary(self) -> Performance:
        now = self.clock()
        opened = max(self._start, now - self.window_seconds)
        kept = [counts for counts in self._counts if counts[0] >= opened]
        for counts in self._counts:
            if counts[0] < opened < counts[0] + self._slot:
                opened = counts[0] + self._slot  # a slot that the window cuts is left out, and so is its time
        requests, errors, prompt, generation = (sum(counts[column] for counts in kept) for column in range(1, 5))
        seconds = now - opened

        def rate(count: float) -> float | None:
            return count / seconds if seconds > 0 else None

        return Performance(
            seconds, int(requests), int(errors), rate(requests), rate(prompt), rate(generation),
            percentiles(self._of_window(self._first, now)), percentiles(self._of_window(self._between, now)),
            percentiles(self._of_window(self._whole, now)), self._gpus(),
        )  # fmt: skip

    def _current(self, now: float) -> list[float]:
        start = self._start + math.floor((now - self._start) / self._slot) * self._slot
        if not self._counts or self._counts[-1][0] < start:
            self._counts.append([start, 0, 0, 0, 0])
        return self._counts[-1]

    def _of_window(self, samples: deque[tuple[float, float]], now: float) -> list[float]:
        while samples and samples[0][0] < now - self.window_seconds:
            samples.popleft()
        return [value for _, value in samples]


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """By nearest rank, so each is a value that really occurred. None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(percent: int) -> float:
        return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]

    mean = math.fsum(ordered) / len(ordered)
    return Percentiles(len(ordered), mean, rank(50), rank(90), rank(95), rank(99), ordered[-1])


def read_gpus() -> list[dict[str, Any]] | None:
    """From NVIDIA's NVML. None without its Python package, its driver, or a GPU: better no figure than a wrong one."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())] or None
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _gpu(pynvml: Any, index: int) -> dict[str, Any]:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "name": name.decode() if isinstance(name, bytes) else name,
        "utilization": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "memory_used": memory.used,
        "memory_total": memory.total,
    }
