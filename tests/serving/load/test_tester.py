from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from labsupport.inference import LLMEngine
from labsupport.serving import create_app
from labsupport.serving.load.processes import processes_for, run_in_processes
from labsupport.serving.load.report import Report, write_report
from labsupport.serving.load.tester import Result, run_load
from labsupport.serving.load.workload import Planned, plan_requests, read_trace


class InstantLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting: seconds are exact and cost nothing."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_InstantSelector(self))

    def time(self) -> float:
        return self.now


class _InstantSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, loop: InstantLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout:
            self.loop.now += timeout
        return super().select(timeout and 0)


class Server(httpx.AsyncBaseTransport):
    """Answers request ``number`` after ``seconds(number)``, with one token."""

    def __init__(self, seconds: Callable[[int], float], status: int = 200) -> None:
        self.seconds, self.status, self.count, self.under_way, self.most = seconds, status, 0, 0, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.count += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.seconds(self.count - 1))
        self.under_way -= 1
        text = 'data: {"choices": [{"text": "x"}]}\n\n'
        text += 'data: {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}\n\ndata: [DONE]\n\n'
        return httpx.Response(self.status, text=text if self.status == 200 else "{}")


def load(server: Server, plan: list[Planned], concurrency: int | None = None) -> list[Result]:
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(run_load("http://x", plan, concurrency, "m", transport=server))


def every(seconds: float, count: int) -> list[Planned]:
    return [Planned("x", 1, number * seconds) for number in range(count)]


def test_a_stall_is_felt_by_all_who_had_to_wait() -> None:
    """One slow answer in 20, one connection: a tester that omits the wait sees one slow request, users see 15."""
    results = load(Server(lambda number: 1.0 if number == 5 else 0.0), every(0.02, 20), concurrency=1)
    honest = sum(result.latency > 0.5 for result in results)
    omitting = sum(result.service_time > 0.5 for result in results)
    assert omitting == 1 and honest == 15, "those that were due while the slow one ran, and itself"
    assert results[6].latency == pytest.approx(0.98) and results[6].service_time == pytest.approx(0)
    report = Report.of(results)
    assert report.latency is not None and report.service_time is not None
    assert report.latency.p50 > 0.5 > report.service_time.p50
    assert all(result.time_to_first_token is not None for result in results)
    assert min(result.latency - (result.time_to_first_token or 0) for result in results) >= 0


def test_an_open_loop_sends_when_due_whatever_the_server_does() -> None:
    server = Server(lambda number: 0.5)
    results = load(server, every(0.01, 20))
    assert server.most == 20, "nobody waited for an answer before sending"
    assert [result.due for result in results] == [planned.at for planned in every(0.01, 20)]


def test_a_closed_loop_has_a_fixed_number_of_clients() -> None:
    server = Server(lambda number: 0.01)
    results = load(server, [Planned("x", 1) for _ in range(12)], concurrency=3)
    assert server.most == 3 and len(results) == 12 and all(result.due == result.sent for result in results)
    with pytest.raises(ValueError, match="concurrency"):
        load(server, [Planned("x", 1)])
    with pytest.raises(ValueError, match="plan"):
        load(server, [])


def test_failures_are_counted_by_reason() -> None:
    report = Report.of(load(Server(lambda number: 0.0, status=429), every(0.0, 3)))
    assert report.succeeded == 0 and report.failures == {"status 429": 3} and report.latency is None
    assert "3 x status 429" in str(report)

    class Cut(Server):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, text='data: {"choices": [{"text": "x"}]}\n\n')

    (result,) = load(Cut(lambda number: 0.0), every(0.0, 1))
    assert result.error == "the stream ended early"


def test_poisson_times_have_the_rate_and_repeat() -> None:
    plan = plan_requests(4000, rate=50.0, seed=3, text="abc" * 200)
    gaps = [(b.at or 0) - (a.at or 0) for a, b in pairwise(plan)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.06) and variance == pytest.approx(mean**2, rel=0.2)
    assert plan == plan_requests(4000, rate=50.0, seed=3, text="abc" * 200)
    assert plan != plan_requests(4000, rate=50.0, seed=4, text="abc" * 200)


def test_lengths_from_distributions() -> None:
    plan = plan_requests(500, None, "uniform:5:9", "lognormal:20:0.5", text="abc" * 200)
    assert {len(each.prompt) for each in plan} == {5, 6, 7, 8, 9} and all(each.at is None for each in plan)
    assert 15 < sorted(each.max_tokens for each in plan)[250] < 27
    assert {each.max_tokens for each in plan_requests(5, None, "3", "7", text="abcdef")} == {7}
    for bad in ("", "0", "uniform:9:5", "uniform:1", "normal:3:4", "lognormal:a:b", "-3", "lognormal:1:1e9"):
        with pytest.raises(ValueError, match="output_tokens must be"):
            plan_requests(50, None, "5", bad, text="abc" * 9)
    with pytest.raises(ValueError, match="rate"):
        plan_requests(5, 0.0, text="abc" * 9)


def test_traces(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0.5, "prompt": "b", "max_tokens": 3}\n\n{"at": 0, "prompt": "a", "max_tokens": 2}\n')
    assert read_trace(trace) == [Planned("a", 2, 0.0), Planned("b", 3, 0.5)]
    for bad in (
        "{",
        "[]",
        '{"at": -1, "prompt": "a", "max_tokens": 1}',
        '{"prompt": "a"}',
        '{"at": 1e999, "prompt": "a", "max_tokens": 1}',
    ):
        trace.write_text(bad)
        with pytest.raises(ValueError, match=r"trace.jsonl line 1"):
            read_trace(trace)


def test_against_the_real_server(engine: LLMEngine, serve: Any, tmp_path: Path) -> None:
    plan = plan_requests(12, 100.0, "uniform:5:20", "uniform:2:8", seed=1)
    with serve(create_app(engine)) as url:
        results = asyncio.run(run_load(url + "/v1", plan, ignore_eos=True))
    report = Report.of(results)
    assert report.succeeded == 12 and not report.failures
    assert [result.completion_tokens for result in results] == [planned.max_tokens for planned in plan]
    assert all(
        result.prompt_tokens == len(planned.prompt.encode()) for result, planned in zip(results, plan, strict=True)
    )
    numbers, picture = write_report(report, results, tmp_path / "out")
    assert json.loads(numbers.read_text())["report"]["succeeded"] == 12
    assert picture.read_bytes().startswith(b"\x89PNG") and sorted(path.name for path in numbers.parent.iterdir()) == [
        "latency.png", "loadtest.json",
    ]  # fmt: skip


def test_an_address_without_a_server_is_named() -> None:
    with pytest.raises(ValueError, match="url must lead to a server"):
        asyncio.run(run_load("http://127.0.0.1:9", every(0.0, 1)))


def test_a_tester_that_falls_behind_says_so() -> None:
    """The event loop is kept busy, as it is by more requests than one process can send."""

    class Busy(Server):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            loop = asyncio.get_running_loop()
            loop.now += 0.05  # type: ignore[attr-defined]
            await request.extensions["trace"]("http11.send_request_body.complete", {})
            return await super().handle_async_request(request)

    report = Report.of(load(Busy(lambda number: 0.0), every(0.005, 40)))
    assert report.offered_per_second == pytest.approx(200) and report.sent_per_second == pytest.approx(20, rel=0.05)
    assert report.behind and "this tester is too slow" in str(report) and "sent 2" in str(report)
    waiting = Report.of(load(Server(lambda number: 0.1), every(0.005, 40), concurrency=1))
    assert waiting.behind and "the server is too slow" in str(waiting)
    in_time = Report.of(load(Server(lambda number: 0.1), every(0.005, 40)))
    assert not in_time.behind and "BEHIND" not in str(in_time)
    closed = Report.of(load(Server(lambda number: 0.1), [Planned("x", 1)] * 9, concurrency=3))
    assert not closed.behind


@pytest.mark.slow
def test_processes_share_a_plan(engine: LLMEngine, serve: Any) -> None:
    plan = plan_requests(9, 100.0, "uniform:5:20", "uniform:2:8", seed=1)
    with serve(create_app(engine)) as url:
        results = run_in_processes(url, plan, 2, concurrency=3, ignore_eos=True)
        with pytest.raises(ValueError, match="processes must be from 1 to 3"):
            run_in_processes(url, plan, 4, concurrency=3)
    assert [result.due for result in results] == [planned.at for planned in plan]
    assert [result.completion_tokens for result in results] == [planned.max_tokens for planned in plan]
    assert all(0 <= result.due <= result.free <= result.sent <= result.finished for result in results)
    with pytest.raises(ValueError, match="url must lead to a server"):
        run_in_processes("http://127.0.0.1:9", plan, 2)


def test_as_many_processes_as_the_rate_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert processes_for(every(0.05, 100)) == 1 and processes_for([Planned("x", 1)] * 9) == 1
    assert processes_for(every(0.004, 100)) == 3
    assert processes_for([Planned("x", 400, 0.1 * number) for number in range(50)]) == 3, "tokens are work, too"
    assert processes_for(every(0.0001, 100)) == 8
