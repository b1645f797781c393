"""The stack: its configuration is accepted by the programs that it is for, and all of it runs and survives."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
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
from labsupport.serving.stack import processes as stack
from labsupport.serving.stack.processes import choose_ports, find_programs, prepare, read_procfile

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
SETTINGS = {"MODEL": "tiny", "MAX_NUM_SEQS": "4", "MAX_IN_FLIGHT": "12", "LEASE_SECONDS": "2.0", "DRAIN_SECONDS": "10",
            "THREADS": "1"}  # fmt: skip
PATIENCE = 300.0  # seconds that a slow machine may take: only failing tests wait for so long
PROMPT = "The with statement"

try:
    find_programs()
    MISSING = ""
except ValueError as error:
    MISSING = str(error)
needs_programs = pytest.mark.skipif(bool(MISSING), reason=MISSING)


# What is written ------------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    if MISSING:
        pytest.skip(MISSING)
    return tmp_path / "run", prepare(tmp_path / "run", DEPLOY, 0, SETTINGS)


def test_the_configuration_is_filled_in_and_private(prepared: tuple[Path, dict[str, str]]) -> None:
    run, variables = prepared
    for name in ("nginx.conf", "redis.conf", "prometheus.yml"):
        text = (run / name).read_text()
        assert not re.search(r"@[A-Z0-9_]+@", text)
        assert stat.S_IMODE((run / name).stat().st_mode) == 0o600, "a password is in one of them"
    assert variables["REDIS_PASSWORD"] in (run / "redis.conf").read_text()
    assert len({variables[name] for name in stack.PORTS}) == len(stack.PORTS)


def test_every_program_listens_on_loopback_only(prepared: tuple[Path, dict[str, str]]) -> None:
    run, variables = prepared
    assert re.findall(r"listen (\S+);", (run / "nginx.conf").read_text()) == [f"127.0.0.1:{variables['PORT']}"]
    assert "bind 127.0.0.1\n" in (run / "redis.conf").read_text()
    commands = read_procfile((DEPLOY / "Procfile").read_text(), variables)
    assert f"--web.listen-address=127.0.0.1:{variables['PROMETHEUS_PORT']}" in commands["prometheus"]
    assert [name for name in commands] == ["redis", "worker-1", "worker-2", "api-1", "api-2", "nginx", "prometheus"]


def test_no_password_is_on_a_command_line(prepared: tuple[Path, dict[str, str]]) -> None:
    _, variables = prepared
    commands = read_procfile((DEPLOY / "Procfile").read_text(), variables)
    assert not any(variables["REDIS_PASSWORD"] in part for command in commands.values() for part in command)


def test_nginx_accepts_its_configuration(prepared: tuple[Path, dict[str, str]]) -> None:
    run, variables = prepared
    command = [variables["NGINX"], "-t", "-e", "stderr", "-p", str(run), "-c", str(run / "nginx.conf")]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert outcome.returncode == 0, outcome.stderr


def test_prometheus_accepts_its_configuration(prepared: tuple[Path, dict[str, str]]) -> None:
    run, _ = prepared
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    command = ["promtool", "check", "config", str(run / "prometheus.yml")]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    from labsupport.serving.metrics import Metrics
    from labsupport.serving.stack.worker import Worker
    from labsupport.serving.stack.worker_metrics import _QueueCollector

    class Nothing:
        model_name = "tiny"

        def stats(self) -> Any:
            from labsupport.inference.stats import EngineStats

            return EngineStats(0, 0, 0.0, 0, 0, 0, 0, 0, 0, {})

    metrics = Metrics(Nothing())  # type: ignore[arg-type]
    metrics.registry.register(_QueueCollector(Worker(None, Nothing(), "w", 1)))  # type: ignore[arg-type]
    metrics.answered("GET", "/health", 200)
    there = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(asked) >= 8
    for expression in asked:
        names = set(re.findall(r"labsupport:\w+", expression))
        assert names and names <= there, expression
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redis redis-server", "must be `name: command`"),
        ("a: x\na: y", "line 2: must be"),
        ("a:", "must be"),
        ("a b: c", "must be"),
        ("a: $UNKNOWN", "UNKNOWN"),
        ("a: 'x", "line 1"),
    ],
)
def test_a_bad_procfile_is_told_by_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_procfile(text, {})


def test_a_procfile_keeps_words_together() -> None:
    assert read_procfile("# no\n\na-1: x 'y z' $V\n", {"V": "w"}) == {"a-1": ["x", "y z", "w"]}


def test_ports_that_are_taken_are_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} must be free"):
            choose_ports(port, 1)
    assert len(set(choose_ports(0, 7))) == 7


def test_what_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, path=None: None if program == "nginx" else f"/bin/{program}")
    with pytest.raises(ValueError, match=r"nginx must be installed.*apt-get install nginx-light"):
        find_programs()


def test_a_folder_that_nginx_could_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no spaces or quotes"):
        prepare(tmp_path / "a b", DEPLOY, 0, SETTINGS)


# The whole of it ------------------------------------------------------------------------------------------------------


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
        """As by the out-of-memory killer. It is there again when this returns."""
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
        """``pieces`` grows while the answer comes; the last one is "[DONE]" if all went well."""
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
    """What an engine says to the prompt."""
    from labsupport.inference import LLMEngine, SamplingParams
    from labsupport.lm import load_lm

    engine = LLMEngine(load_lm("tiny", verbose=False), num_blocks=256)
    params = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
    return engine.generate([PROMPT], params)[0].text


@needs_programs
@pytest.mark.slow
class TestTheWholeStack:
    """In this order: the last one stops it."""

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
            query = "/api/v1/query?query=sum(labsupport:generation_tokens_total%7Bjob=%22worker%22%7D)"
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
