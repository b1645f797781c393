"""Both ends of a visit: the channel between them, the engine at one, and when the other is believed to be idle."""

from __future__ import annotations

import contextlib
import os
import runpy
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from labsupport.checks import exercise
from labsupport.checks.channel import LINE_BYTES, Channel, Closed, Malformed, channels
from labsupport.checks.stand_in_engine import StandInEngine
from labsupport.checks.visit import QUIET, Visit
from labsupport.inference.sampling import SamplingParams

CATALOGUE = runpy.run_path(str(Path(__file__).parent / "catalogue" / "load.py"))
TICK = {"passed": 0.02, "busy": 0.0, "waited": 0.0}


@pytest.fixture
def ends():
    ours, theirs = channels()
    yield ours, theirs
    ours.close()
    theirs.close()


# The channel


def test_messages_arrive_in_order_and_whole(ends) -> None:
    ours, theirs = ends
    sent = [{"number": number, "text": "é\n" * number * 1000} for number in range(8)]
    thread = threading.Thread(target=lambda: [theirs.send(each) for each in sent])
    thread.start()
    assert [ours.receive() for _ in sent] == sent
    thread.join()
    assert ours.receive(0.0) is None


@pytest.mark.parametrize("data", [b"{\n", b"[]\n", b"\xff\n", b"7\n", b"[" * 100_000 + b"\n", b"x" * (LINE_BYTES + 99)])
def test_what_is_no_message_ends_the_conversation(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)

    def send() -> None:
        with contextlib.suppress(OSError):
            theirs.sendall(data * 3)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Malformed):
        channel.receive()
    with pytest.raises(Closed):
        channel.receive()
    theirs.close()


def test_the_end_of_one_end_is_seen_at_the_other(ends) -> None:
    ours, theirs = ends
    theirs.send({"last": 1})
    theirs.close()
    assert ours.receive() == {"last": 1}
    with pytest.raises(Closed):
        ours.receive()
    with pytest.raises(Closed):
        for _ in range(9):
            ours.send({})


def test_nothing_is_sent_after_a_conversation(ends) -> None:
    ours, theirs = ends
    theirs.retire()
    with pytest.raises(Closed):
        theirs.send({"late": True})
    assert ours.receive(0.0) is None


# The clock


def test_who_computes_or_waits_for_a_processor_is_not_idle(ends) -> None:
    ours, theirs = ends
    visit = Visit(ours, {})
    for more in ({"busy": 0.004}, {"waited": 0.02}, {}):
        for _ in range(QUIET - 1):
            theirs.send({"tick": 0, **TICK, **more})
        if more:
            theirs.send({"tick": 0, **TICK, **more})
    theirs.send({"kept": 5})  # something happened: from here on it is counted anew
    for _ in range(QUIET):
        theirs.send({"tick": 0, **TICK})
    theirs.send({"kept": 6})
    assert not visit.wait(lambda: False)
    assert visit._kept == 5


def test_ticks_from_before_the_request_do_not_count(ends) -> None:
    ours, theirs = ends
    visit = Visit(ours, {})
    visit.get("/health")
    for _ in range(3 * QUIET):
        theirs.send({"tick": 0, **TICK})
    theirs.send({"answer": 0, "status": 200, "headers": {}, "over": True, "error": None})
    assert visit.wait(lambda: visit._got[0].over)


def test_who_is_never_idle_is_not_waited_for_for_ever(ends) -> None:
    ours, theirs = ends
    for _ in range(200):
        theirs.send({"tick": 0, **TICK, "busy": 0.02})
    theirs.send({"kept": 1})
    visit = Visit(ours, {})
    assert not visit.wait(lambda: visit._kept is not None)


@pytest.mark.parametrize("message", [
    {"call": 0, "function": "_finish", "arguments": {}, "on_loop": False},
    {"call": 0, "function": "add_request", "arguments": {"prompt": 3, "params": {}, "name": None}, "on_loop": False},
    {"call": 0, "function": "step"},
    {"answer": 3, "status": 200},
    {"answer": 0, "status": "ok"},
    {"answer": 0, "piece": 7},
    {"answer": 0, "headers": []},
    {"kept": "some"},
    {"made": 1},
])  # fmt: skip
def test_messages_that_no_host_sends_end_the_visit(ends, message: dict) -> None:
    ours, theirs = ends
    visit = Visit(ours, {})
    visit.get("/health")
    theirs.send(message)
    with pytest.raises(Malformed):
        visit.wait(lambda: False)


# The engine and its proxy


@pytest.fixture
def engine(ends):
    """The proxy, a visit that answers it until the test is over, and the visit's engine."""
    ours, theirs = ends
    visit = Visit(ours, {"a": "xyz", "b": "pq"})
    proxy = StandInEngine(theirs)
    over = threading.Event()

    def pass_on() -> None:
        try:
            while (message := theirs.receive()) is not None:
                message.pop("do")
                proxy.take(message)
        except Closed:
            return

    def answer() -> None:
        try:
            visit.wait(over.is_set)
        except Closed:
            return

    threads = [threading.Thread(target=each, daemon=True) for each in (pass_on, answer)]
    for thread in threads:
        thread.start()
    yield proxy, visit.engine
    over.set()
    theirs.send({})
    ours.close()
    for thread in threads:
        thread.join()


def test_the_proxy_behaves_like_an_engine(engine) -> None:
    proxy, recorded = engine
    assert not proxy.has_unfinished and proxy.step() == []
    one = proxy.add_request("a", SamplingParams(max_tokens=2))
    two = proxy.add_request([98], SamplingParams(max_tokens=9), request_id=("own", 7))
    assert proxy.has_unfinished and two == ("own", 7)
    first = proxy.step()
    assert [(each.request_id, each.text, each.finished) for each in first] == [(one, "x", False), (two, "p", False)]
    second = proxy.step()
    assert [(each.text, each.finish_reason) for each in second] == [("xy", "length"), ("pq", None)]
    assert proxy.stats().num_requests_running == 1 and proxy.stats().finished == {"length": 1}
    assert proxy.abort(two).finish_reason == "abort" and proxy.abort(two) is None and not proxy.has_unfinished
    assert [output.text for output in proxy.generate(["b", "a"], SamplingParams(max_tokens=9))] == ["pq", "xyz"]
    for bad in ({"prompt": ""}, {"prompt": "a" * 2000}, {"prompt": "a", "sampling_params": 3}):
        with pytest.raises(ValueError):
            proxy.add_request(**bad)
    assert [each.prompt for each in recorded.seen] == ["a", "b", "b", "a"] and recorded.overlaps == []


def test_what_is_kept_of_requests_that_are_over_is_counted(engine) -> None:
    proxy, _ = engine
    ids = [proxy.add_request("a", SamplingParams(max_tokens=1)) for _ in range(6)]
    outputs = proxy.step()
    assert proxy.kept() == 6
    del ids[3:]
    assert proxy.kept() == 6
    outputs.clear()
    assert proxy.kept() == 3
    ids.clear()
    assert proxy.kept() == 0


def test_a_failure_and_the_end_reach_whoever_calls(engine) -> None:
    proxy, recorded = engine
    proxy.add_request("a")
    recorded.fail("CUDA error")
    with pytest.raises(RuntimeError, match="CUDA error"):
        proxy.step()
    proxy.close()
    for call in (proxy.step, proxy.stats, lambda: proxy.has_unfinished, lambda: proxy.add_request("a")):
        with pytest.raises(SystemExit):
            call()


# A whole visit


def test_a_busy_machine_fails_no_server(capfd) -> None:
    namespace = {"__name__": "__main__"}
    exec("\n".join(CATALOGUE["model_answer"]("ex06_inference_api").values()), namespace)
    endless = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        verdicts = exercise("ex06_inference_api").grade(namespace)
    finally:
        for process in endless:
            process.kill()
            process.wait()
    assert [verdict.message for verdict in verdicts.values() if not verdict.passed] == []
