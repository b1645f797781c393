from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from labsupport.inference import LLMEngine, SamplingParams
from labsupport.serving import GenerationFailed, Unavailable, create_app

GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture
def client(engine: LLMEngine) -> Iterator[TestClient]:
    with TestClient(create_app(engine)) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def post(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/completions", json={"prompt": "The with statement", **GREEDY, **body})


# ------------------------------------------------------------------------------------------------ what comes back


def test_plain_and_streamed_are_what_the_engine_gives(client: TestClient, engine: LLMEngine) -> None:
    expected = engine.generate(["The with statement"], SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))[
        0
    ]
    plain = post(client).json()
    streamed = events(post(client, stream=True, stream_options={"include_usage": True}).text)
    assert plain["choices"][0]["text"] == expected.text
    assert plain["usage"]["prompt_tokens"] == 18 and plain["usage"]["completion_tokens"] == 12
    assert "".join(choice["text"] for chunk in streamed for choice in chunk["choices"]) == expected.text
    assert [chunk["choices"][0]["finish_reason"] for chunk in streamed[:-1]] == [None] * (len(streamed) - 2) + [
        "length"
    ]
    assert streamed[-1]["choices"] == [] and streamed[-1]["usage"]["total_tokens"] == 30
    assert len({chunk["id"] for chunk in streamed}) == 1


def test_prompts_of_every_kind(client: TestClient) -> None:
    tokens = list(b"import ")
    alone = post(client, prompt="import ").json()["choices"][0]["text"]
    for prompt in ("import ", ["import "], tokens, [tokens]):
        assert [each["text"] for each in post(client, prompt=prompt).json()["choices"]] == [alone]
    both = post(client, prompt=["The with statement", "import "], n=2).json()
    assert [each["index"] for each in both["choices"]] == [0, 1, 2, 3]
    assert both["choices"][2]["text"] == both["choices"][3]["text"] == alone
    assert both["usage"]["prompt_tokens"] == 18 + 7 and both["usage"]["completion_tokens"] == 4 * 12


def test_the_choices_of_a_stream_are_told_apart(client: TestClient) -> None:
    whole = post(client, prompt=["The with", "import "], n=2, temperature=1, seed=5).json()["choices"]
    texts = ["", "", "", ""]
    for chunk in events(post(client, prompt=["The with", "import "], n=2, temperature=1, seed=5, stream=True).text):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [choice["text"] for choice in whole]


def test_seed_repeats_and_choices_differ(client: TestClient) -> None:
    first, second = (post(client, temperature=1, seed=11, n=3).json()["choices"] for _ in range(2))
    texts = [choice["text"] for choice in first]
    assert texts == [choice["text"] for choice in second] and len(set(texts)) > 1
    assert post(client, temperature=1, seed=-1).status_code == 200


def test_stop_and_echo(client: TestClient) -> None:
    text = post(client).json()["choices"][0]["text"]
    stopped = post(client, stop=[text[4:6]]).json()["choices"][0]
    assert stopped["text"] == text[: text.index(text[4:6])] and stopped["finish_reason"] == "stop"
    assert post(client, echo=True).json()["choices"][0]["text"] == "The with statement" + text
    echoed = events(post(client, echo=True, stream=True).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in echoed) == "The with statement" + text
    only = post(client, echo=True, max_tokens=0).json()
    assert only["choices"][0]["text"] == "The with statement" and only["usage"]["completion_tokens"] == 0


def test_logprobs_line_up_with_the_text(client: TestClient) -> None:
    choice = post(client, logprobs=3).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] and logprobs["text_offset"] == list(range(12))
    for token, value, top in zip(*(logprobs[key] for key in ("tokens", "token_logprobs", "top_logprobs")), strict=True):
        assert len(top) == 3 and top[token] == value == max(top.values()) <= 0
    streamed = [chunk["choices"][0]["logprobs"] for chunk in events(post(client, logprobs=3, stream=True).text)]
    assert [token for each in streamed if each for token in each["tokens"]] == logprobs["tokens"]
    assert [offset for each in streamed if each for offset in each["text_offset"]] == logprobs["text_offset"]
    assert post(client, logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"] is None


def test_chat(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "What is a with statement?"}], **GREEDY}
    plain = client.post("/v1/chat/completions", json=body).json()
    assert plain["object"] == "chat.completion" and plain["choices"][0]["message"]["role"] == "assistant"
    rendered = "User: What is a with statement?\n\nAssistant:"
    assert plain["usage"]["prompt_tokens"] == len(rendered)
    assert plain["choices"][0]["message"]["content"] == post(client, prompt=rendered).json()["choices"][0]["text"]
    logged = client.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 2, "stream": True})
    chunks = events(logged.text)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert said == plain["choices"][0]["message"]["content"]
    content = [
        each
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for each in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert bytes(byte for each in content for byte in each["bytes"]).decode() == said
    assert all(len(each["top_logprobs"]) == 2 for each in content)
    parts = [{"type": "text", "text": "What is a with "}, {"type": "text", "text": "statement?"}]
    split = client.post("/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": parts}]})
    assert split.json()["choices"][0]["message"]["content"] == said


def test_chat_takes_all_the_room_by_default(client: TestClient) -> None:
    answer = client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x" * 2020}], "temperature": 0}
    )
    assert answer.json()["usage"]["completion_tokens"] <= 2048 - 2020


def test_a_character_of_several_tokens_arrives_whole(client: TestClient) -> None:
    streamed = events(post(client, prompt="naïve café — “x”", temperature=1.5, seed=3, max_tokens=60, stream=True).text)
    text = "".join(chunk["choices"][0]["text"] for chunk in streamed)
    assert (
        text
        == post(client, prompt="naïve café — “x”", temperature=1.5, seed=3, max_tokens=60).json()["choices"][0]["text"]
    )


def test_models(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["tiny"] and listed["data"][0]["max_model_len"] == 2048
    assert client.get("/v1/models/tiny").json() == listed["data"][0]
    missing = client.get("/v1/models/gpt-4")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    assert post(client, model="gpt-4").status_code == 404 and post(client, model="tiny").status_code == 200


def test_it_works_where_nobody_runs_the_lifespan(engine: LLMEngine) -> None:
    client = TestClient(create_app(engine))
    assert client.get("/health").status_code == 200 and client.get("/ready").status_code == 200
    assert post(client).status_code == 200


def test_two_apps_in_one_process(engine: LLMEngine, tiny: Any) -> None:
    with TestClient(create_app(engine)) as first, TestClient(create_app(LLMEngine(tiny, num_blocks=64))) as second:
        assert post(first).json()["choices"] == post(second).json()["choices"]
        with TestClient(create_app(engine)) as third:
            assert post(third).status_code == 200
        assert post(first).status_code == 200, "the engine stops with its last app"


# ------------------------------------------------------------------------------------------------ one engine thread


def test_no_request_blocks_another_or_the_health_check(paused: Any, until: Callable[..., None]) -> None:
    """An endpoint that steps the engine in the event loop answers nobody until it is finished."""
    app = create_app(paused)
    with TestClient(app) as client, ThreadPoolExecutor(4) as pool:
        requests = [pool.submit(post, client, prompt=prompt) for prompt in ("The with", "import ", "def ", "x")]
        assert paused.entered.wait(60)
        until(lambda: len(app.state.backend.admission.streams) == 4, "four requests are in, and the first step hangs")
        assert client.get("/health").status_code == 200
        assert "num_requests_waiting" in client.get("/metrics").text
        assert client.get("/v1/models").status_code == 200
        assert not any(request.done() for request in requests)
        paused.run_free()
        assert [request.result().status_code for request in requests] == [200] * 4
    waits = [value for _, value in app.state.monitor._whole]
    assert len(waits) == 4


def test_one_process_makes_one_thread_for_its_engine(engine: LLMEngine) -> None:
    before = threading.active_count()
    apps = [create_app(engine) for _ in range(4)]
    assert len({id(app.state.backend) for app in apps}) == 1 and threading.active_count() == before


# ------------------------------------------------------------------------------------------------ limits


def test_a_full_queue_answers_429_with_a_time_to_come_back(paused: Any, until: Callable[..., None]) -> None:
    app = create_app(paused, max_waiting=0)
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(post, client) for _ in range(2)]
        until(lambda: len(app.state.backend.admission.streams) == 2, "both places are taken")
        for stream in (False, True):
            refused = post(client, stream=stream)
            assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) >= 1
        too_many = post(client, n=3)
        assert too_many.status_code == 400, "it could never be accepted: trying again would not help"
        paused.run_free()
        assert [each.result().status_code for each in running] == [200, 200]
        assert post(client, n=2).status_code == 200


def test_bodies_are_bounded_however_they_are_sent(engine: LLMEngine) -> None:
    with TestClient(create_app(engine, max_body_bytes=1000)) as client:
        assert post(client, prompt="x" * 2000).status_code == 413
        chunks = (b'{"prompt": "' + b"x" * 400 for _ in range(100))
        chunked = client.post("/v1/completions", content=chunks, headers={"content-type": "application/json"})
        assert chunked.status_code == 413 and chunked.json()["error"]["code"] == "body_too_large"
        assert post(client).status_code == 200


def test_api_keys(engine: LLMEngine) -> None:
    with TestClient(create_app(engine, api_keys=["right", "other"])) as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "right"},
            {"Authorization": "Basic right"},
        ):
            refused = client.get("/v1/models", headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        for key in ("right", "other"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200
    for keys in ([""], "right", [" "]):
        with pytest.raises(ValueError, match="api_keys"):
            create_app(engine, api_keys=keys)


def test_keys_are_compared_in_constant_time(engine: LLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(len(left))
        return left == right

    monkeypatch.setattr("labsupport.serving.keys.hmac.compare_digest", compare)
    with TestClient(create_app(engine, api_keys=["a" * 50, "b"])) as client:
        for key in ("a" * 50, "x", "y" * 500):
            compared.clear()
            client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert compared == [32, 32], "every key is looked at, and all digests are as long"


# ------------------------------------------------------------------------------------------------ ids, logs, failures


def test_request_ids(client: TestClient) -> None:
    assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("", "x" * 200, "a b"):
        given = client.get("/health", headers={"x-request-id": bad}).headers["x-request-id"]
        assert given != bad and len(given) == 32
    assert client.post("/v1/completions", content=b"{").headers["x-request-id"]
    both = [post(client, stream=True).headers["x-request-id"] for _ in range(2)]
    assert len(set(both)) == 2


class Broken:
    """A backend that fails with the given error."""

    model_name, max_model_len, max_in_flight = "tiny", 2048, None

    def __init__(self, engine: LLMEngine, error: Exception, after: int = 0) -> None:
        self.engine, self.tokenizer, self.error, self.after = engine, engine.tokenizer, error, after
        self.is_alive = self.is_ready = True

    async def start(self) -> None: ...

    async def shutdown(self, drain_seconds: float) -> None: ...

    async def stream(self, request_id: str, prompt: Any, params: SamplingParams, intermediate: bool = True) -> Any:
        from labsupport.inference.request import RequestOutput, RequestTimes

        for count in range(self.after):
            yield RequestOutput(request_id, prompt, "x" * count, [120] * count, None, None, 0, RequestTimes())
        raise self.error

    def alive(self) -> bool:
        return self.is_alive

    def ready(self) -> bool:
        return self.is_ready

    def stats(self) -> Any:
        return self.engine.stats()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("secret"), 500),
        (KeyError("secret"), 500),
        (GenerationFailed("secret"), 500),
        (Unavailable("draining"), 503),
    ],
)
def test_failures_keep_their_secrets(engine: LLMEngine, error: Exception, status: int, stream: bool) -> None:
    with TestClient(create_app(Broken(engine, error))) as client:
        answer = post(client, stream=stream)
        assert answer.status_code == status and answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text and "Traceback" not in answer.text


def test_a_failure_after_the_first_token_is_an_event(engine: LLMEngine) -> None:
    with TestClient(create_app(Broken(engine, RuntimeError("secret"), after=3))) as client:
        answer = post(client, stream=True)
    lines = [line for line in answer.text.split("\n") if line]
    assert answer.status_code == 200 and json.loads(lines[-1][6:])["error"]["type"] == "server_error"
    assert "secret" not in answer.text and "[DONE]" not in answer.text


def test_health_and_readiness_really_look(engine: LLMEngine) -> None:
    broken = Broken(engine, Unavailable("dead"))
    with TestClient(create_app(broken)) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        broken.is_ready = False
        assert client.get("/health").status_code == 200 and client.get("/ready").status_code == 503
        broken.is_alive = False
        answer = client.get("/health")
        assert answer.status_code == 503 and answer.json()["status"] != "alive"


def test_health_notices_that_the_engine_died(engine: LLMEngine, monkeypatch: pytest.MonkeyPatch, until: Any) -> None:
    def fail(plan: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(engine.runner, "forward", fail)
    with TestClient(create_app(engine)) as client:
        assert client.get("/health").status_code == 200
        for _ in range(3):
            assert post(client).status_code == 500
        until(lambda: client.get("/health").status_code == 503, "the health check fails")
        assert client.get("/ready").status_code == 503 and post(client).status_code == 503


def test_shutdown_cancels_what_runs_and_says_so(paused: Any, until: Callable[..., None]) -> None:
    app = create_app(paused, drain_seconds=0.01)
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(post, client)
        assert paused.entered.wait(60)
        assert client.portal is not None
        stopping = pool.submit(client.portal.call, app.state.stop)
        until(lambda: app.state.backend._stopping, "the time to drain is over")
        paused.run_free()
        answer = running.result()
        stopping.result()
        assert post(client).status_code == 503
    assert answer.status_code == 503 and "shut" in answer.json()["error"]["message"]


def test_create_app_refuses_what_it_cannot_serve() -> None:
    with pytest.raises(ValueError, match="engine must be an LLMEngine"):
        create_app(42)


def test_large_prompts_are_encoded_beside_the_event_loop(engine: LLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    encode = engine.tokenizer.encode

    def record(text: str) -> list[int]:
        threads.append(threading.get_ident())
        return encode(text)

    app = create_app(engine)
    monkeypatch.setattr(engine.tokenizer, "encode", record, raising=False)

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for size in (10, 100_000):
                await client.post("/v1/completions", json={"prompt": "x" * size, "max_tokens": 1})

    asyncio.run(scenario())
    assert threads[0] == threading.get_ident() != threads[1]
