"""The official client, unmodified, against a real server on this machine; and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from labsupport.inference import LLMEngine
from labsupport.serving import create_app

openai = pytest.importorskip("openai")

PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "The with statement", "temperature": 0, "max_tokens": 10}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}


@pytest.fixture(scope="module")
def url(tiny: Any, serve: Any) -> Iterator[str]:
    with serve(create_app(LLMEngine(tiny, max_num_seqs=4, num_blocks=256), api_keys=["sk-test"])) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as client:
        yield client


def test_completions(client: Any) -> None:
    plain = client.completions.create(**PROMPT, logprobs=2, n=2, stop=["\n"], seed=1, top_p=0.9, user="me")
    assert plain.choices[0].text == plain.choices[1].text and plain.usage.total_tokens > plain.usage.prompt_tokens == 18
    assert plain.choices[0].logprobs.tokens and plain.choices[0].finish_reason in ("stop", "length")
    chunks = list(client.completions.create(**PROMPT, stream=True, stream_options={"include_usage": True}))
    whole = client.completions.create(**PROMPT).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens == 10
    tokens = client.completions.create(**{**PROMPT, "prompt": list(b"The with statement")})
    assert tokens.choices[0].text == whole
    more = client.completions.create(**PROMPT, extra_body={"ignore_eos": True, "top_k": 5})
    assert more.usage.completion_tokens == 10


def test_chat(client: Any) -> None:
    plain = client.chat.completions.create(**CHAT, max_completion_tokens=12, logprobs=True, top_logprobs=2)
    assert plain.choices[0].message.role == "assistant" and plain.usage.completion_tokens <= 12
    assert len(plain.choices[0].logprobs.content) == plain.usage.completion_tokens
    stream = client.chat.completions.create(**CHAT, max_tokens=12, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == plain.choices[0].message.content and chunks[-1].usage.total_tokens == plain.usage.total_tokens
    with client.chat.completions.stream(**CHAT, max_tokens=12) as helper:
        assert "".join(event.delta for event in helper if event.type == "content.delta") == said


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_async_client_with_many_requests(url: str) -> None:
    async def scenario() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
            return await asyncio.gather(*(client.completions.create(**PROMPT) for _ in range(20)))

    answers = asyncio.run(scenario())
    assert len({answer.choices[0].text for answer in answers}) == 1 and len({answer.id for answer in answers}) == 20


def test_errors_are_the_clients_own_classes(client: Any, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="context length") as caught:
        client.completions.create(**{**PROMPT, "max_tokens": 10**6})
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(**{**PROMPT, "temperature": -1})
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.completions.create(**{**PROMPT, "model": "gpt-4"})
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()


def test_a_full_queue_is_a_rate_limit_error(paused: Any, serve: Any, until: Callable[..., None]) -> None:
    app = create_app(paused, max_waiting=0)
    with (
        serve(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        running = [pool.submit(client.completions.create, **PROMPT) for _ in range(2)]
        until(lambda: len(app.state.backend.admission.streams) == 2, "both places are taken")
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**PROMPT)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        paused.run_free()
        assert all(each.result().choices[0].text for each in running)


def test_a_stream_that_is_closed_frees_its_blocks(
    paused: Any, serve: Any, until: Callable[..., None], released: Callable[[LLMEngine], bool]
) -> None:
    app = create_app(paused)
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        stream = client.completions.create(
            **{**PROMPT, "max_tokens": 500}, stream=True, extra_body={"ignore_eos": True}
        )
        paused.permits.release()
        assert next(iter(stream)).choices[0].text
        assert paused.cache.usage()["used_blocks"] > 0
        stream.close()
        admission = app.state.backend.admission
        until(lambda: bool(admission.left) or not admission.streams, "the server knows that the client has gone")
        paused.permits.release()  # the step that was under way
        until(lambda: not admission.streams, "it is gone")
        assert released(paused)
        until(lambda: paused.stats().finished == {"abort": 1}, "it is counted")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_is_forgotten(
    paused: Any, serve: Any, until: Callable[..., None], released: Callable[[LLMEngine], bool], stream: bool
) -> None:
    """Nothing has been sent to it, so no write could fail: the server must listen for the end of the connection."""
    app = create_app(paused)
    with serve(app) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({**PROMPT, "max_tokens": 500, "stream": stream}).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: len(app.state.backend.admission.streams) == 1, "the request is in")
            assert paused.entered.wait(60)
        admission = app.state.backend.admission
        until(lambda: bool(admission.left) or not admission.streams, "the server knows that the client has gone")
        paused.permits.release()
        until(lambda: not admission.streams, "it is gone")
        assert released(paused)
        metrics = app.state.metrics
        gone = ("labsupport_request_success_total", {"model_name": "tiny", "finished_reason": "abort"})
        until(lambda: metrics.registry.get_sample_value(*gone) == 1, "it is counted as aborted")
