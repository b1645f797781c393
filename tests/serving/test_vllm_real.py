"""`serve --engine vllm` in front of the real vLLM, with SmolLM2, in an environment of its own (`make test-vllm`)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from labsupport.inference import LLMEngine, SamplingParams
from labsupport.lm import LanguageModel, load_lm
from labsupport.lm.folder import save_lm
from labsupport.serving.load.report import Report
from labsupport.serving.load.tester import run_load
from labsupport.serving.load.workload import plan_requests

PYTHON = os.environ.get("LABSUPPORT_VLLM_PYTHON", "")
FOLDER = Path(__file__).parent
PATIENCE = 600.0  # seconds, for vLLM to start on a busy machine
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.smollm2,
    pytest.mark.skipif(
        not Path(PYTHON or "nowhere").exists(),
        reason="no environment with vLLM: `make test-vllm` makes it, if it can be installed",
    ),
]
PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time", "Water boils at"]
ASK = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
OPTIONS = ("dtype=float32", "gpu_memory_utilization=0.2", "kv_cache_memory_bytes=536870912", "enforce_eager=true")


def environment() -> dict[str, str]:
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "PYTHONPATH": str(FOLDER.parents[1]),
    }


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("smollm2-135m", verbose=False)


@pytest.fixture(scope="module")
def folder(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    probe = subprocess.run([PYTHON, "-c", "import vllm"], capture_output=True, text=True, env=environment())
    if probe.returncode:
        pytest.skip(f"vLLM is installed, and does not run here: {probe.stderr[-200:]}")
    path = tmp_path_factory.mktemp("vllm") / "smollm2"
    save_lm(lm, path, torch.float32)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [PYTHON, "-u", "-m", "labsupport.cli", "serve", "--engine", "vllm", "--model", str(folder), "--port", "0"]
    command += ["--max-num-seqs", "4", "--max-model-len", "512"]
    command += [part for option in OPTIONS for part in ("--vllm-option", option)]
    log = folder.parent / "log.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(), start_new_session=True
        )
    assert process.stdout is not None
    try:
        found = next((match for line in process.stdout if (match := re.search(r"at (http://\S+)/v1", line))), None)
        assert found is not None, log.read_text()[-3000:]
        yield found[1], process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)


@pytest.fixture
def client(server: tuple[str, Any]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[0], timeout=PATIENCE) as client:
        yield client


def value(client: httpx.Client, name: str, **labels: str) -> float:
    samples = (
        each for family in text_string_to_metric_families(client.get("/metrics").text) for each in family.samples
    )
    return next(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


def test_the_same_greedy_tokens_and_log_probabilities(client: httpx.Client, lm: LanguageModel) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=1)
    expected = LLMEngine(lm, max_num_seqs=4).generate(PROMPTS, params)
    answer = client.post("/v1/completions", json={**ASK, "prompt": PROMPTS, "logprobs": 1}).json()
    for choice, ours in zip(answer["choices"], expected, strict=True):
        assert choice["text"] == ours.text
        assert ours.logprobs is not None
        chosen = [each[token] for each, token in zip(ours.logprobs, ours.token_ids, strict=True)]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(chosen, abs=2e-3)


def test_streams_and_chats(client: httpx.Client) -> None:
    whole = client.post("/v1/completions", json={**ASK, "prompt": PROMPTS[0]}).json()
    body = {**ASK, "prompt": PROMPTS[0], "stream": True, "stream_options": {"include_usage": True}}
    lines = client.post("/v1/completions", json=body).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-2]]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == whole["choices"][0]["text"]
    assert len(chunks) > 5 and chunks[-1]["usage"]["completion_tokens"] == 24
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}
    assert client.post("/v1/chat/completions", json=chat).status_code in (200, 400), (
        "its tokenizer may have no template"
    )


def test_echo_scores_the_prompt(client: httpx.Client, lm: LanguageModel) -> None:
    body = {**ASK, "prompt": PROMPTS[0], "echo": True, "logprobs": 1, "max_tokens": 1}
    scores = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
    tokens = torch.tensor([lm.tokenizer.encode(PROMPTS[0])])
    logits = lm.model(tokens)[0].log_softmax(-1)
    expected = logits[:-1].gather(1, tokens[0, 1:, None])[:, 0].tolist()
    assert scores[0] is None and scores[1:-1] == pytest.approx(expected, abs=2e-3)


def test_a_client_that_leaves_frees_its_place(client: httpx.Client) -> None:
    before = value(client, "labsupport_request_success_total", finished_reason="abort")
    body = {**ASK, "prompt": PROMPTS[0], "max_tokens": 400, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    end = time.monotonic() + PATIENCE
    while value(client, "labsupport_request_success_total", finished_reason="abort") == before:
        assert time.monotonic() < end, "the abort is not counted"
        time.sleep(0.05)
    client.post("/v1/completions", json={**ASK, "prompt": PROMPTS[1]})  # a step, whose numbers are of after it
    assert value(client, "labsupport_num_requests_running") == 0


def test_what_it_lacks_is_refused(client: httpx.Client) -> None:
    for change in ({"max_tokens": 0}, {"max_tokens": 5000}, {"prompt": [1] * 600}, {"prompt": [10**8]}):
        answer = client.post("/v1/completions", json={**ASK, "prompt": "x", **change})
        assert answer.status_code == 400, (change, answer.text)
    assert client.get("/health").status_code == 200


def test_a_load_test(server: tuple[str, Any]) -> None:
    plan = plan_requests(12, 20.0, "uniform:20:80", "uniform:4:16", seed=1)
    report = Report.of(asyncio.run(run_load(server[0], plan, ignore_eos=True)))
    assert report.succeeded == 12 and not report.failures
    with httpx.Client(base_url=server[0]) as client:
        assert value(client, "labsupport_generation_tokens_total") >= sum(each.max_tokens for each in plan)


def test_it_ends_cleanly(server: tuple[str, subprocess.Popen[str]]) -> None:
    server[1].send_signal(signal.SIGTERM)
    assert server[1].wait(120) == 0


def test_vllm_does_what_is_recorded(folder: Path) -> None:
    """Last: two engines at a time would not fit into small machines."""
    command = [PYTHON, str(FOLDER / "vllm_behaviour.py"), str(folder), *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    seen = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"its first'))
    assert seen == json.loads((FOLDER / "vllm_behaviour.json").read_text())
