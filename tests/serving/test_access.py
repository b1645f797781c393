"""Who may come in: by Host, by key, from which page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from labsupport.cli import app as command_line
from labsupport.inference import LLMEngine
from labsupport.serving import create_app
from labsupport.serving.access import default_hosts, host_name


@pytest.mark.parametrize(
    ("host", "name"),
    [("localhost:8000", "localhost"), ("LocalHost", "localhost"), ("[::1]:8000", "::1"), ("[::1]", "::1"),
     ("127.0.0.1:1", "127.0.0.1"), ("evil.example:8000", "evil.example"), ("", "")],
)  # fmt: skip
def test_host_names(host: str, name: str) -> None:
    assert host_name(host) == name


def test_default_hosts() -> None:
    assert default_hosts("127.0.0.1") == ["127.0.0.1", "::1", "localhost"] == default_hosts("localhost")
    assert "127.0.0.2" in default_hosts("127.0.0.2")
    assert default_hosts("0.0.0.0") == default_hosts("192.0.2.7") == []


def test_a_page_that_points_its_name_at_this_machine_is_refused(engine: LLMEngine) -> None:
    """DNS rebinding: the browser sends the page's name, also with a GET that needs no permission."""
    with TestClient(create_app(engine, allowed_hosts=default_hosts("127.0.0.1"))) as client:
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "", "testserver"):
            refused = client.get("/v1/models", headers={"host": host})
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "host_not_allowed", host
        for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200, host
        two = [("host", "localhost"), ("host", "evil.example")]
        assert client.get("/v1/models", headers=two).status_code == 403
    for hosts in ((), ("*",), ("testserver",)):
        with TestClient(create_app(engine, allowed_hosts=hosts)) as client:
            assert client.get("/v1/models").status_code == 200


def test_two_different_authorizations_are_ambiguous(engine: LLMEngine) -> None:
    with TestClient(create_app(engine, api_keys=["right"])) as client:
        right, wrong = ("authorization", "Bearer right"), ("authorization", "Bearer wrong")
        for both in ([right, wrong], [wrong, right]):
            answer = client.get("/v1/models", headers=both)
            assert answer.status_code == 400 and "Authorization" in answer.json()["error"]["message"]
        assert client.get("/v1/models", headers=[right, right]).status_code == 200


def test_what_is_open_beside_the_keys_can_be_closed(engine: LLMEngine) -> None:
    paths = ("/health", "/ready", "/metrics", "/docs", "/openapi.json")
    with TestClient(create_app(engine, api_keys=["right"])) as client:
        assert [client.get(path).status_code for path in paths] == [200] * 5
    with TestClient(create_app(engine, api_keys=["right"], keys_everywhere=True)) as client:
        assert [client.get(path).status_code for path in paths] == [401] * 5
        headers = {"Authorization": "Bearer right"}
        assert [client.get(path, headers=headers).status_code for path in paths] == [200] * 5
    with pytest.raises(ValueError, match="keys_everywhere needs api_keys"):
        create_app(engine, keys_everywhere=True)
    told = " ".join(CliRunner().invoke(command_line, ["serve", "--help"], env={"COLUMNS": "200"}).output.split())
    assert all(path in told for path in paths) and "--keys-everywhere" in told


def test_other_pages_may_use_it_only_if_they_are_named(engine: LLMEngine) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,authorization"}
    page, other = "https://class.example", "https://evil.example"
    with TestClient(create_app(engine, api_keys=["right"], cors_origins=[page])) as client:
        allowed = client.options("/v1/completions", headers={"Origin": page, **asked})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == page
        assert client.options("/v1/completions", headers={"Origin": other, **asked}).status_code == 400
        headers = {"Origin": page, "Authorization": "Bearer right"}
        assert client.get("/v1/models", headers=headers).headers["access-control-allow-origin"] == page
    with TestClient(create_app(engine)) as client:
        answer = client.options("/v1/completions", headers={"Origin": page, **asked})
        assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


def test_bodies_that_are_read_at_the_same_time_are_bounded(
    engine: LLMEngine, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    from labsupport.serving import middleware

    app = create_app(engine, max_body_bytes=1000)
    with TestClient(app) as client:
        found: Any = app.middleware_stack
        while not isinstance(found, middleware.ServingMiddleware):
            found = found.app
        found.max_buffered_bytes = 100
        assert client.post("/v1/completions", content=b"x" * 200).status_code == 503
        assert found._buffered == 0
        assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200
