"""The stack's configuration is complete, private, and accepted by the programs that it is for."""

from __future__ import annotations

import json
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from labsupport.serving.stack.configuration import PORTS, choose_ports, find_programs, prepare, read_procfile

DEPLOY = Path(__file__).parents[3] / "deploy"
SETTINGS = {"MODEL": "tiny", "MAX_NUM_SEQS": "4", "MAX_IN_FLIGHT": "12", "LEASE_SECONDS": "2.0", "DRAIN_SECONDS": "10",
            "THREADS": "1"}  # fmt: skip
PATIENCE = 300.0  # seconds that a slow machine may take: only failing tests wait that long

try:
    find_programs()
    MISSING = ""
except ValueError as error:
    MISSING = str(error)


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
    assert len({variables[name] for name in PORTS}) == len(PORTS)


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
    pytest.importorskip("redis")
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
        names = set(re.findall(r"labsupport_\w+", expression))
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
