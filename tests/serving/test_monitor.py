from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labsupport.serving import PerformanceMonitor
from labsupport.serving.monitor import percentiles, read_gpus


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def monitor(clock: Clock, **options: Any) -> PerformanceMonitor:
    return PerformanceMonitor(clock=clock, gpus=lambda: None, **options)


def test_throughput_is_of_the_window_and_not_of_a_number_in_the_code() -> None:
    clock = Clock()
    watched = monitor(clock)
    for _ in range(6000):
        watched.record(e2e_latency=0.1, generation_tokens=10)
        clock.now += 0.001  # 6000 requests in 6 seconds
    summary = watched.summary()
    assert summary.seconds == pytest.approx(6) and summary.requests == 6000
    assert summary.requests_per_second == pytest.approx(1000)
    assert summary.generation_tokens_per_second == pytest.approx(10_000)
    clock.now += 54  # nothing for the rest of the minute
    assert watched.summary().requests_per_second == pytest.approx(100, rel=0.02)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    clock = Clock()
    watched = monitor(clock, window_seconds=10)
    watched.record(e2e_latency=5.0, time_to_first_token=4.0, inter_token=[3.0])
    clock.now += 60
    summary = watched.summary()
    assert summary.requests == 0 and summary.requests_per_second == 0
    assert summary.e2e_latency is summary.time_to_first_token is summary.inter_token_latency is None
    watched.record(e2e_latency=1.0)
    assert watched.summary().e2e_latency.maximum == 1.0  # type: ignore[union-attr]


def test_a_long_silence_counts_as_time() -> None:
    """One request after a quiet night is one a minute, not one a second."""
    clock = Clock()
    watched = monitor(clock)
    watched.record(e2e_latency=1.0)
    clock.now += 8 * 3600
    watched.record(e2e_latency=1.0)
    clock.now += 1
    summary = watched.summary()
    assert (summary.requests, summary.seconds) == (1, pytest.approx(60))
    assert summary.requests_per_second == pytest.approx(1 / 60)


def test_an_empty_window_is_no_error() -> None:
    summary = monitor(Clock()).summary()
    assert summary.requests == 0 and summary.requests_per_second is None and summary.e2e_latency is None


def test_memory_is_bounded_and_the_count_still_right() -> None:
    clock = Clock()
    watched = monitor(clock, window_seconds=60, max_samples=100)
    for number in range(5000):
        watched.record(e2e_latency=float(number), time_to_first_token=1.0, inter_token=[0.1, 0.2])
        clock.now += 0.01
    kept: list[Any] = [watched._first, watched._between, watched._whole, watched._counts]
    assert all(len(each) <= 100 for each in kept)
    summary = watched.summary()
    assert summary.requests == 5000 and summary.requests_per_second == pytest.approx(100)
    assert summary.e2e_latency.p50 > 4900, "percentiles are of the newest"  # type: ignore[union-attr]


def test_three_latencies_are_kept_apart() -> None:
    clock = Clock()
    watched = monitor(clock)
    watched.record(e2e_latency=10.0, time_to_first_token=1.0, inter_token=[0.1, 0.1, 0.3], prompt_tokens=5)
    clock.now += 1
    summary = watched.summary()
    assert summary.e2e_latency.p50 == 10.0 and summary.time_to_first_token.p50 == 1.0  # type: ignore[union-attr]
    assert summary.inter_token_latency.count == 3 and summary.inter_token_latency.p99 == 0.3  # type: ignore[union-attr]
    assert summary.prompt_tokens_per_second == 5


@given(st.lists(st.floats(0, 200), min_size=1, max_size=60), st.floats(0.5, 30))
def test_it_counts_what_lies_in_the_window(gaps: list[float], window: float) -> None:
    clock = Clock()
    watched = monitor(clock, window_seconds=window)
    times = []
    for gap in gaps:
        clock.now += gap
        times.append(clock.now)
        watched.record(e2e_latency=1.0)
    summary = watched.summary()
    opened = clock.now - summary.seconds
    age = clock.now - 1000
    assert min(window * (1 - 1 / 60), age) - 1e-6 <= summary.seconds <= min(window, age) + 1e-6
    inside = sum(time > opened + 1e-6 for time in times)
    at_least = sum(time >= opened - 1e-6 for time in times)
    assert inside <= summary.requests <= at_least
    assert summary.e2e_latency.count == sum(time >= clock.now - window for time in times)  # type: ignore[union-attr]


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_occurred_and_are_ordered(values: list[float]) -> None:
    found = percentiles(values)
    assert found is not None
    ordered = [found.p50, found.p90, found.p95, found.p99, found.maximum]
    assert ordered == sorted(ordered) and set(ordered) <= set(values)
    assert sum(value <= found.p90 for value in values) >= 0.9 * len(values)


def test_percentiles_by_hand() -> None:
    found = percentiles([float(n) for n in range(100, 0, -1)])
    assert (found.p50, found.p90, found.p95, found.p99, found.maximum) == (50, 90, 95, 99, 100)  # type: ignore[union-attr]
    assert percentiles([]) is None


def test_errors_are_counted() -> None:
    clock = Clock()
    watched = monitor(clock)
    watched.record(error=True)
    watched.record(e2e_latency=1.0)
    clock.now += 2
    assert watched.summary().errors == 1 and watched.summary().requests == 2


def test_gpu_figures_are_read_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def fake(count: int, fails: bool = False) -> SimpleNamespace:
        def init() -> None:
            if fails:
                raise NVMLError

        return SimpleNamespace(
            NVMLError=NVMLError, nvmlInit=init, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: count,
            nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetName=lambda handle: b"GPU",
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=7, total=9),
            nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=25),
        )  # fmt: skip

    for module in (None, fake(0), fake(1, fails=True)):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        assert read_gpus() is None
    monkeypatch.setitem(sys.modules, "pynvml", fake(2))
    expected = {"name": "GPU", "utilization": 0.25, "memory_used": 7, "memory_total": 9}
    assert read_gpus() == [expected, expected]
    assert PerformanceMonitor().summary().gpus == [expected, expected]


@pytest.mark.parametrize("options", [{"window_seconds": 0}, {"window_seconds": float("nan")}, {"max_samples": 0}])
def test_it_refuses_a_window_of_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PerformanceMonitor(**options)
