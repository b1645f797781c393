from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from labsupport.inference import LLMEngine
from labsupport.serving import create_app
from labsupport.serving.logs import JsonFormatter, configure_logs
from labsupport.serving.metrics import PREFIX

RULES = Path(__file__).parents[2] / "deploy" / "prometheus-rules.yml"
BODY = {"prompt": "The with statement", "max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def client(engine: LLMEngine) -> Iterator[TestClient]:
    with TestClient(create_app(engine)) as client:
        yield client


def others(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in labels.items() if name != "model_name"))


def scrape(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = (sample for family in text_string_to_metric_families(answer.text) for sample in family.samples)
    return {(sample.name.removeprefix(PREFIX), others(sample.labels)): sample.value for sample in samples}


def test_the_official_parser_reads_what_really_happened(client: TestClient) -> None:
    before = scrape(client)
    for _ in range(3):
        assert client.post("/v1/completions", json=BODY).status_code == 200
    client.post("/v1/completions", json={**BODY, "stream": True, "n": 2})
    client.post("/v1/completions", json={**BODY, "n": -1})
    after = scrape(client)
    assert before[("generation_tokens_total", ())] == 0 and after[("generation_tokens_total", ())] == 5 * 6
    assert after[("prompt_tokens_total", ())] == 5 * 18
    assert after[("request_success_total", (("finished_reason", "length"),))] == 5
    assert before[("request_success_total", (("finished_reason", "stop"),))] == 0, "shown before there is one"
    assert after[("time_to_first_token_seconds_count", ())] == after[("e2e_request_latency_seconds_count", ())] == 4
    assert after[("inter_token_latency_seconds_count", ())] > 0 == before[("inter_token_latency_seconds_count", ())]
    assert after[("request_queue_time_seconds_count", ())] == after[("request_decode_time_seconds_count", ())] == 5
    assert after[("request_generation_tokens_sum", ())] == 30 and after[("request_prompt_tokens_sum", ())] == 90
    assert after[("num_requests_running", ())] == after[("num_requests_waiting", ())] == 0
    assert after[("prefix_cache_queries_total", ())] == 90 and after[("prefix_cache_hits_total", ())] > 0
    assert after[("kv_cache_usage_perc", ())] == 0 == after[("num_preemptions_total", ())]
    http = ("handler", "/v1/completions"), ("method", "POST")
    assert after[("http_requests_total", (*http, ("status", "200")))] == 4
    assert after[("http_requests_total", (*http, ("status", "400")))] == 1


def test_latencies_agree_with_one_another(client: TestClient) -> None:
    client.post("/v1/completions", json={**BODY, "stream": True})
    seen = scrape(client)
    first, whole = seen[("time_to_first_token_seconds_sum", ())], seen[("e2e_request_latency_seconds_sum", ())]
    between = seen[("inter_token_latency_seconds_sum", ())]
    assert 0 < first < first + between <= whole


@pytest.mark.parametrize("accept", ["", "*/*", "application/openmetrics-text; version=1.0.0"])
def test_names_are_the_same_whoever_asks(client: TestClient, accept: str) -> None:
    answer = client.get("/metrics", headers={"accept": accept})
    assert (
        answer.headers["content-type"].startswith("text/plain") and "\nlabsupport_num_requests_running" in answer.text
    )


def test_paths_do_not_become_labels(client: TestClient) -> None:
    for number in range(5):
        client.get(f"/nothing/{number}")
        client.get(f"/v1/models/m{number}")
        client.request(f"METHOD{number}", "/health")
    labels = [dict(key[1]) for key in scrape(client) if key[0] == "http_requests_total"]
    assert {label["handler"] for label in labels} <= {"unknown", "/v1/models/{name:path}", "/health", "/metrics"}
    assert {label["method"] for label in labels} <= {"GET", "other"}


def test_the_apis_models_do_not_take_the_engines_names() -> None:
    """In the original course, a pydantic class of the same name shadowed the engine's dataclass, and broke it."""
    from labsupport.inference import request, sampling
    from labsupport.serving import protocol

    engine_names = {name for module in (request, sampling) for name in vars(module) if not name.startswith("_")}
    own = {name for name, value in vars(protocol).items() if getattr(value, "__module__", "") == protocol.__name__}
    assert own and not own & engine_names


def test_a_request_is_one_line_of_json_without_its_text(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "labsupport.serving"):
        client.post("/v1/completions", json={**BODY, "stream": True}, headers={"x-request-id": "mine-7"})
        client.get("/health")
    (record,) = caplog.records
    assert record.fields["route"] == "/v1/completions" and record.fields["completion_tokens"] == 6  # type: ignore[attr-defined]
    assert record.fields["finish_reasons"] == ["length"]  # type: ignore[attr-defined]
    assert "with statement" not in JsonFormatter().format(record)


def test_logs_carry_the_requests_id(engine: LLMEngine, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in ("labsupport.serving", "uvicorn", "uvicorn.access")]
    kept = [(each.handlers, each.level, each.propagate, each.disabled) for each in loggers]
    try:
        configure_logs()
        with TestClient(create_app(engine)) as client:
            client.post("/v1/completions", json=BODY, headers={"x-request-id": "mine-8"})
    finally:
        for each, (handlers, level, propagate, disabled) in zip(loggers, kept, strict=True):
            each.handlers, each.propagate, each.disabled = handlers, propagate, disabled
            each.setLevel(level)
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    assert [line["request_id"] for line in lines if line.get("route") == "/v1/completions"] == ["mine-8"]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_promtool_finds_nothing_to_mend(client: TestClient) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it comes with Prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=client.get("/metrics").content, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    rules = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert rules.returncode == 0, rules.stdout + rules.stderr


def test_every_metric_that_vllm_has_is_recorded_under_its_name(client: TestClient) -> None:
    rules = re.findall(r"record: vllm:(\w+)\n *expr: labsupport_(\w+)\n", RULES.read_text(encoding="utf-8"))
    assert all(theirs == ours for theirs, ours in rules)
    ours = {name for name, _ in scrape(client) if not name.endswith("_created") and name != "http_requests_total"}
    assert {name for name, _ in rules} == ours and len(rules) == len(ours)
