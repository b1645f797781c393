from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from labsupport.cli import app
from labsupport.inference import LLMEngine
from labsupport.serving import create_app
from labsupport.serving.options import Quantization, load

runner = CliRunner()


def test_help_is_light() -> None:
    code = (
        "import sys, labsupport.serving, labsupport.cli\n"
        "names = {'torch', 'fastapi', 'httpx', 'pydantic', 'matplotlib', 'redis'}\n"
        "heavy = names & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    for command in ("serve", "loadtest"):
        assert runner.invoke(app, [command, "--help"]).exit_code == 0


class Process:
    """`labsupport serve` on a free port."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-u", "-m", "labsupport.cli", "serve", "--port", "0", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+)/v1", line):
                self.url = found[1]
                return
        raise AssertionError("".join(self.lines))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> int:
        """Its status, once it has ended by itself; ``lines`` is then complete."""
        out, _ = self.process.communicate(timeout=120)
        self.lines.append(out)
        return self.process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_serve_quantizes_says_what_it_loads_and_ends_cleanly(number: int, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the class\nsecret\n")
    options = ["--api-key-file", str(keys), "--max-num-seqs", "3", "--num-blocks", "64"]
    with Process(*options, "--quantization", "rtn", "--bits", "4") as server:
        told = "".join(server.lines)
        assert "tiny: 1.6 million parameters" in server.lines[0] and "64 blocks" in told
        assert "rtn" in told and "bits" in told
        body = {"prompt": "The", "max_tokens": 500, "ignore_eos": True, "stream": True}
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=120) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(number)
            rest = list(lines)
        assert "data: [DONE]" in rest, "what ran was finished"
        assert server.end() == 0 and "stopped" in server.lines[-1]


def test_what_serve_loads_is_really_quantized() -> None:
    small = load("tiny", Quantization.rtn, 4, 64)
    report: Any = small.model.quantization_report
    assert report.bits == 4 and small.precision.startswith("rtn")


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("# none\n")
    for arguments, expected in (
        (["--model", "nothing"], "name must be"),
        (["--api-key-file", str(empty)], "at least one key"),
        (["--api-key-file", str(tmp_path / "no")], "No such file"),
        (["--num-blocks", "1", "--host", "192.0.2.1"], "listen"),
    ):
        outcome = runner.invoke(app, ["serve", "--port", "0", *arguments])
        assert outcome.exit_code == 2 and expected in outcome.output and "Traceback" not in outcome.output, arguments


def test_a_port_that_is_taken_is_said(engine: LLMEngine, serve: Any) -> None:
    with serve(create_app(engine)) as url:
        outcome = runner.invoke(app, ["serve", "--port", url.rsplit(":", 1)[1], "--num-blocks", "16"])
    assert outcome.exit_code == 2 and "cannot listen" in outcome.output


def test_loadtest_command(engine: LLMEngine, serve: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0, "prompt": "The", "max_tokens": 2}\n')
    out = tmp_path / "out"
    with serve(create_app(engine)) as url:
        for arguments in (
            ["--concurrency", "2", "--requests", "4", "--out", str(out)],
            ["--rate", "50", "--requests", "4"],
            ["--trace", str(trace)],
        ):
            outcome = runner.invoke(app, ["loadtest", url, "--output-tokens", "3", *arguments])
            assert outcome.exit_code == 0, outcome.output
            assert "to first token" in outcome.output
    assert (out / "latency.png").is_file() and (out / "loadtest.json").is_file()
    for arguments in ([], ["--trace", str(trace), "--rate", "1"], ["--rate", "1", "--output-tokens", "x"]):
        assert runner.invoke(app, ["loadtest", "http://127.0.0.1:9", *arguments]).exit_code == 2
