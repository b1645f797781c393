"""The whole stack runs, and survives when its programs are killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")
pytest.importorskip("fastapi")
from labsupport.serving.stack.configuration import find_programs

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
PATIENCE = 300.0  # seconds that a slow machine may take: only failing tests wait that long
PROMPT = "The with statement"

try:
    find_programs()
    MISSING = ""
except ValueError as error:
    MISSING = str(error)
needs_programs = pytest.mark.skipif(bool(MISSING), reason=MISSING)


class Running:
    """`labsupport stack up` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.lines: list[str] = []
        command = [sys.executable, "-m", "labsupport.cli", "stack", "up", "--port", "0", "--data", str(self.run)]
        command += ["--deploy", str(DEPLOY), "--max-num-seqs", "4", "--max-in-flight", "12", "--lease-seconds", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.until(lambda: any(line.startswith("ready: ") for line in self.lines), "the stack is not ready")
        line = next(line for line in self.lines if line.startswith("ready: "))
        self.port, self.prometheus = (int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", line))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def until(self, condition: Callable[[], Any], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, "\n".join(self.lines[-60:])
            assert time.monotonic() < deadline, otherwise + "\n" + "\n".join(self.lines[-60:])
            time.sleep(0.05)

    def pid(self, name: str) -> int | None:
        with suppress(OSError, ValueError):
            return int((self.run / f"{name}.pid").read_text())
        return None

    def kill(self, name: str) -> None:
        """As the out-of-memory killer would. Returns when the program has been restarted."""
        before = self.pid(name)
        assert before is not None
        os.kill(before, signal.SIGKILL)
        self.until(lambda: self.pid(name) not in (None, before), f"{name} is not started again")

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}{path}", timeout=PATIENCE) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, prompt: str, max_tokens: int) -> tuple[int, Any]:
        body = json.dumps({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def stream(self, prompt: str, max_tokens: int, pieces: list[str]) -> None:
        """``pieces`` grows while the answer comes; the last piece is "[DONE]" if all went well."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        for line in response:
            if line.startswith(b"data: "):
                data = line[6:].decode().strip()
                pieces.append(data if data == "[DONE]" else json.loads(data)["choices"][0]["text"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if MISSING:
        pytest.skip(MISSING)
    up = Running(tmp_path_factory.mktemp("stack"))
    yield up
    if up.process.poll() is None:
        up.process.send_signal(signal.SIGTERM)
        up.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def expected() -> str:
    """How an engine continues the prompt."""
    from labsupport.inference import LLMEngine, SamplingParams
    from labsupport.lm import load_lm

    engine = LLMEngine(load_lm("tiny", verbose=False), num_blocks=256)
    params = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
    return engine.generate([PROMPT], params)[0].text


@needs_programs
@pytest.mark.slow
class TestTheWholeStack:
    """In this order: the last test stops the stack."""

    def test_it_answers_through_the_balancer(self, running: Running, expected: str) -> None:
        status, answer = running.complete(PROMPT, 40)
        assert status == 200 and expected.startswith(answer["choices"][0]["text"])
        assert answer["usage"]["completion_tokens"] == 40
        assert running.get("/ready")[0] == 200 and running.get("/metrics")[0] == 404
        assert running.complete("", 4)[0] == 400

    def test_a_killed_worker_and_a_killed_redis_lose_nothing(self, running: Running, expected: str) -> None:
        streams: list[list[str]] = [[] for _ in range(6)]
        answers: list[Any] = []
        threads = [threading.Thread(target=running.stream, args=(PROMPT, 400, pieces)) for pieces in streams]
        threads += [threading.Thread(target=lambda: answers.append(running.complete(PROMPT, 300))) for _ in range(4)]
        for thread in threads:
            thread.start()
        running.until(lambda: sum(bool("".join(pieces)) for pieces in streams) >= 4, "no tokens come")
        running.kill("worker-1")
        running.kill("redis")
        running.kill("worker-2")
        for thread in threads:
            thread.join(PATIENCE)
        assert [pieces[-1:] for pieces in streams] == [["[DONE]"]] * 6
        assert ["".join(pieces[:-1]) for pieces in streams] == [expected] * 6
        assert [status for status, _ in answers] == [200] * 4
        assert all(expected.startswith(answer["choices"][0]["text"]) for _, answer in answers)
        assert all(len(answer["choices"][0]["text"]) > 200 for _, answer in answers)

    def test_more_than_it_may_hold_is_refused_and_nothing_else(self, running: Running) -> None:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(running.complete(PROMPT, 200)[0])) for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert set(statuses) <= {200, 429} and len(statuses) == 30
        assert statuses.count(200) >= 12 and statuses.count(429) >= 1

    def test_prometheus_sees_all_of_it(self, running: Running) -> None:
        def up() -> dict[str, str]:
            _, text = running.get("/api/v1/query?query=up", running.prometheus)
            found = json.loads(text)["data"]["result"]
            return {each["metric"]["job"] + each["metric"]["instance"]: each["value"][1] for each in found}

        def ready() -> bool:
            with suppress(OSError, ValueError):
                return len(up()) == 4 and set(up().values()) == {"1"}
            return False

        running.until(ready, "Prometheus does not reach all four")

        def tokens() -> float:
            query = "/api/v1/query?query=sum(labsupport_generation_tokens_total%7Bjob=%22worker%22%7D)"
            found = json.loads(running.get(query, running.prometheus)[1])["data"]["result"]
            return float(found[0]["value"][1]) if found else 0.0

        running.until(lambda: tokens() > 100, "Prometheus does not count tokens")

    def test_it_stops_with_all_that_it_started(self, running: Running) -> None:
        names = [path.stem for path in running.run.glob("*.pid") if path.stem not in ("nginx.conf",)]
        pids = [pid for pid in map(running.pid, names) if pid is not None]
        assert len(pids) >= 7
        pieces: list[str] = []
        last = threading.Thread(target=running.stream, args=(PROMPT, 100, pieces))
        last.start()
        running.until(lambda: "".join(pieces), "no tokens come")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 0, "\n".join(running.lines[-60:])
        last.join(PATIENCE)
        assert pieces[-1:] == ["[DONE]"], "what ran was finished first"
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists() and is_alive(pid)] == []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
