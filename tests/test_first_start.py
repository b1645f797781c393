"""The first command of a new user: `make lab` serves chapter 1, and says what to do where it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\S+")


def make(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=outside | environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """What make reads, in a folder where nothing is set up."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy2(root / name, tmp_path)
    package = tmp_path / "labsupport"
    package.mkdir()
    shutil.copy2(root / "labsupport" / "__init__.py", package)
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url: str) -> bytes:
    """What a server that is starting answers: JupyterLab prints its address a moment before it listens there."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.read()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------- it works


def test_make_lab_serves_chapter_1_to_this_machine_only(root: Path, tmp_path: Path) -> None:
    """As whoever runs the tests (root, in containers), without a display; options reach JupyterLab."""
    if not (root / ".venv" / "lab.stamp").exists():
        if os.environ.get("CI"):
            pytest.fail("CI sets .venv up by `make test`")
        pytest.skip(".venv is not set up by make")
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    environment |= {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    log = tmp_path / "lab.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            ["make", "lab", f"LAB_ARGS=--port={port} --ServerApp.port_retries=0"],
            cwd=root, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not (found := ADDRESS.search(log.read_text())) and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert found, log.read_text()[-3000:]
        address = found.group()
        assert f":{port}/lab/tree/notebooks/01_quantization.ipynb?token=" in address
        assert b"jupyter-config-data" in get(address)
        contents = address.replace("/lab/tree/", "/api/contents/")
        assert json.loads(get(contents))["content"]["cells"][0]["id"] == "title"
        with socket.socket() as probe:  # another address of this machine: nobody listens there
            probe.settimeout(5)
            assert probe.connect_ex(("127.0.0.2", port)) != 0
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def test_the_dev_container_runs_make_lab(root: Path) -> None:
    lines = (root / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8").splitlines()
    settings = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))
    assert settings["postAttachCommand"] == "make lab"
    assert settings["postCreateCommand"] == "make .venv/lab.stamp"
    assert make("--dry-run", ".venv/lab.stamp", "lab", cwd=root).returncode == 0
    python = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert python.endswith("/.venv/bin/python")


# ----------------------------------------------------------------------------------- it says what to do instead


def test_without_a_python_that_is_new_enough(checkout: Path) -> None:
    programs = checkout / "programs"
    for name in ("python3", "python"):  # one that is too old: it fails the comparison
        program(programs, name, "exit 1")
    path = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    names = " ".join(f"python3.{minor}" for minor in range(11, 20))
    for name in names.split():
        program(programs, name, "exit 1")
    outcome = make("lab", cwd=checkout, PATH=path)
    said = outcome.stdout + outcome.stderr
    assert outcome.returncode != 0
    assert "Python 3.11 or newer is needed" in said and "make lab PYTHON=/path/to/python" in said
    assert not (checkout / ".venv").exists()


def test_the_first_python_that_is_new_enough_is_taken(checkout: Path) -> None:
    programs = checkout / "programs"
    program(programs, "python3", "exit 1")
    program(programs, "python3.14", f'exec "{sys.executable}" "$@"')
    path = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    outcome = make(".venv/bin/python", cwd=checkout, PATH=path)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert (checkout / ".venv" / "bin" / "python").exists()


def test_a_python_that_cannot_make_environments(checkout: Path) -> None:
    """Debian's without python3-venv."""
    programs = checkout / "programs"
    program(programs, "python3", 'case "$2" in *ensurepip*) exit 1;; esac; exit 0')
    outcome = make("lab", cwd=checkout, PATH=os.pathsep.join([str(programs), "/usr/bin", "/bin"]))
    assert outcome.returncode != 0
    assert "apt-get install python3-venv" in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("state", ["an empty folder", "no pip"])
def test_an_environment_that_was_not_finished(checkout: Path, state: str) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    if state == "no pip":
        program(checkout / ".venv" / "bin", "python", "exit 1")
    outcome = make("lab", cwd=checkout)
    said = outcome.stdout + outcome.stderr
    assert outcome.returncode != 0
    assert "an earlier set-up was interrupted" in said and "make clean" in said
    assert make("clean", cwd=checkout).returncode == 0
    assert not (checkout / ".venv").exists()


def test_without_a_network(checkout: Path) -> None:
    closed = f"http://127.0.0.1:{free_port()}/simple"
    outcome = make("lab", cwd=checkout, PYTHON=sys.executable, PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=closed,
                   PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="", PIP_RETRIES="0", PIP_TIMEOUT="2")  # fmt: skip
    said = outcome.stdout + outcome.stderr
    assert outcome.returncode != 0
    assert "Without a network" in said and "run make again" in said
    assert not (checkout / ".venv" / "lab.stamp").exists()
