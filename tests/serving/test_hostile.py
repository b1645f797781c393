"""Requests that are wrong, huge or hostile get a 4xx that says why, and the server keeps working."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labsupport.inference import LLMEngine
from labsupport.serving import create_app

GOOD = {"prompt": "x", "max_tokens": 1}


@pytest.fixture(scope="module")
def client(tiny: Any) -> Iterator[TestClient]:
    with TestClient(create_app(LLMEngine(tiny, max_num_seqs=4, num_blocks=256, max_model_len=128))) as client:
        yield client


def send(client: TestClient, body: bytes, path: str = "/v1/completions", kind: str = "application/json") -> Any:
    answer = client.post(path, content=body, headers={"content-type": kind})
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        assert 400 <= answer.status_code < 500 and error["type"].endswith("_error")
        assert "Traceback" not in answer.text and "labsupport/" not in answer.text and len(answer.text) < 3000
    return answer


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": -5}, "max_tokens"), ({"max_tokens": 10**9}, "prompt"), ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"), ({"temperature": 3}, "temperature"), ({"top_p": 7}, "top_p"),
        ({"top_p": 0}, "top_p"), ({"n": 0}, "n"), ({"n": 100}, "n"), ({"logprobs": 1000}, "logprobs"),
        ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [300]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"), ({"prompt": "x" * 600}, "prompt"), ({"prompt": ["x"] * 200}, "prompt"),
        ({"stop": ""}, "stop"), ({"stop": ["a"] * 100}, "stop"), ({"stop": 3}, "stop"), ({"seed": 2**70}, "seed"),
        ({"seed": "a"}, "seed"), ({"stream": "yes"}, "stream"), ({"stream_options": {}}, "stream_options"),
        ({"max_token": 1}, "max_token"), ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"999": 1}}, "logit_bias"), ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty"), ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"presence_penalty": 3}, "presence_penalty"), ({"best_of": 1, "n": 2}, "best_of"), ({"top_k": -7}, "top_k"),
        ({"guided_regex": "a"}, "guided_regex"), ({"model": "x" * 1000}, "model"), ({"model": 3}, "model"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_name(client: TestClient, change: dict[str, Any], param: str) -> None:
    answer = send(client, json.dumps({**GOOD, **change}).encode())
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 20_000, b"{}" * 2,
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": Infinity}', b'{"prompt": "\\ud800"}',
        b'{"prompt": ["\\udfff"]}', b'{"prompt": "a", "stop": "\\ud800"}', b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "max_tokens": ' + b"9" * 10_000 + b"}", b'{"prompt": "a", "temperature": 1e999}',
        json.dumps({**GOOD, **{f"field{i}": i for i in range(5000)}}).encode(), b'{"prompt":"a"}' + b" " * 2**21,
    ],
)  # fmt: skip
def test_malformed_bodies(client: TestClient, body: bytes) -> None:
    assert send(client, body).status_code in (400, 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_other_kinds_of_body(client: TestClient, kind: str) -> None:
    answer = send(client, json.dumps(GOOD).encode(), kind=kind)
    assert answer.status_code == 415 and "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [], "hello", [{}], [{"role": "tool", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "user", "content": "x" * 600}], [{"role": "user", "content": "x"}] * 2000,
        [{"role": "user", "content": "\ud800"}], [{"role": "user", "content": []}], None,
    ],
)  # fmt: skip
def test_chats(client: TestClient, messages: Any) -> None:
    body = json.dumps({"messages": messages, "max_tokens": 1}).encode()
    assert send(client, body, "/v1/chat/completions").status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/completions", 405), ("DELETE", "/health", 405), ("GET", "/../../etc/passwd", 404),
     ("GET", "/v1/models/" + "x" * 5000, 404), ("POST", "/nope", 404), ("BREW", "/health", 405)],
)  # fmt: skip
def test_other_paths_and_methods(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status and answer.json()["error"]["type"].endswith("_error") and len(answer.text) < 500


def test_tokens_are_counted_by_the_tokenizer(client: TestClient) -> None:
    """Not by counting words: Chinese has no spaces, and the prompt is not part of the answer."""
    usage = send(client, json.dumps({"prompt": "你好，世界", "max_tokens": 3, "ignore_eos": True}).encode()).json()[
        "usage"
    ]
    assert usage["prompt_tokens"] == len("你好，世界".encode()) and usage["completion_tokens"] == 3


def test_a_stream_is_a_stream(client: TestClient) -> None:
    answer = send(client, json.dumps({**GOOD, "stream": True}).encode())
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.text.endswith("data: [DONE]\n\n")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "stream",
    "logprobs",
    "echo",
    "model",
    "messages",
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/v1/completions", "/v1/chat/completions"]), st.dictionaries(st.sampled_from(FIELDS), json_values)
)
def test_any_json_at_all(client: TestClient, path: str, body: dict[str, Any]) -> None:
    base = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    send(client, json.dumps({**base, "max_tokens": 1, **body}).encode(), path)


def test_messages_cannot_forge_log_lines_or_headers(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    from labsupport.serving.logs import JsonFormatter

    with caplog.at_level("INFO", "labsupport.serving"):
        client.get("/v1/models/evil%0d%0aset-cookie:%20a=b%0a{}", headers={"x-request-id": 'a"b'})
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert lines and all("\n" not in line and json.loads(line) for line in lines)


@pytest.mark.slow
def test_schemathesis(tiny: Any) -> None:
    """Requests drawn from the app's own schema, and requests that violate it: no 5xx, no undocumented answer."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import Phase
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

    app = create_app(LLMEngine(tiny, max_num_seqs=2, num_blocks=64, max_model_len=64), max_body_bytes=20_000)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    checks = [not_a_server_error, status_code_conformance, content_type_conformance]
    tried = set()
    for operation in schema.get_all_operations():
        method = operation.ok()
        tried.add(method.path)

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        @given(case=st.one_of(method.as_strategy(), method.as_strategy(schemathesis.GenerationMode.NEGATIVE)))
        def check(case: Any) -> None:
            case.call_and_validate(checks=checks)

        check()
    assert {"/v1/completions", "/v1/chat/completions", "/health", "/metrics"} <= tried
