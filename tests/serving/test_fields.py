"""Every field of OpenAI's and vLLM's: used, accepted as harmless, or refused with the right words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from labsupport.inference import LLMEngine
from labsupport.serving import create_app
from labsupport.serving.fields import Only, field_table
from labsupport.serving.protocol import ChatRequest, CompletionRequest, Message, StreamOptions

ASK = {"role": "user", "content": "Hello"}
PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def client(tiny: Any) -> Iterator[TestClient]:
    with TestClient(create_app(LLMEngine(tiny, max_num_seqs=4, num_blocks=256))) as client:
        yield client


def chat(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": [ASK], "temperature": 0, "max_tokens": 4, **body})


def complete(client: TestClient, **body: Any) -> Any:
    prompt = {"prompt": "The with statement", "temperature": 0, "max_tokens": 8, "ignore_eos": True}
    return client.post("/v1/completions", json={**prompt, **body})


def refusal(answer: Any) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


# ------------------------------------------------------------------------------------------------ harmless


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "text"}}, {"tools": []}, {"tool_choice": "auto"}, {"store": False},
        {"service_tier": "auto"}, {"parallel_tool_calls": True}, {"parallel_tool_calls": False}, {"tools": None},
        {"modalities": ["text"]}, {"metadata": {"a": "b"}}, {"user": "me"}, {"safety_identifier": "me"},
        {"prompt_cache_key": "k"}, {"repetition_penalty": 1.0}, {"skip_special_tokens": True}, {"min_p": 0.0},
        {"logit_bias": {}}, {"logit_bias": None}, {"min_tokens": 0}, {"functions": None}, {"reasoning_effort": None},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_changes_nothing(client: TestClient, field: dict[str, Any]) -> None:
    plain, given = chat(client), chat(client, **field)
    assert given.status_code == 200, given.text
    assert given.json()["choices"] == plain.json()["choices"]


def test_every_field_may_be_null(client: TestClient) -> None:
    own = {"messages", "max_tokens", "temperature"}
    assert chat(client, **dict.fromkeys(ChatRequest.model_fields.keys() - own)).status_code == 200
    own = {"prompt", "max_tokens", "temperature", "ignore_eos"}
    assert complete(client, **dict.fromkeys(CompletionRequest.model_fields.keys() - own)).status_code == 200


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"response_format": {"type": "json_object"}},
        {"store": True}, {"store": 1}, {"service_tier": "flex"}, {"modalities": ["text", "audio"]},
        {"tool_choice": "required"}, {"web_search_options": {}}, {"verbosity": "low"}, {"reasoning_effort": "high"},
        {"guided_json": {}}, {"structured_outputs": {"regex": "a"}}, {"min_p": 0.1}, {"min_p": False},
        {"skip_special_tokens": False}, {"prompt_logprobs": 1},
    ],
)  # fmt: skip
def test_what_this_server_lacks_is_called_unsupported(client: TestClient, field: dict[str, Any]) -> None:
    answer = chat(client, **field)
    assert refusal(answer) == (400, next(iter(field)), "unsupported")
    assert "not supported by this server" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "1"}, {"role": "function", "content": "x"},
        {**ASK, "name": "Anna"}, {**ASK, "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": "x", "audio": {"id": "1"}},
    ],
)  # fmt: skip
def test_so_are_messages_of_kinds_that_it_lacks(client: TestClient, message: dict[str, Any]) -> None:
    answer = chat(client, messages=[ASK, message])
    assert refusal(answer) == (400, "messages", "unsupported")
    assert "1." in answer.json()["error"]["message"] and len(answer.json()["error"]["message"]) < 160


def test_a_mistake_is_called_one(client: TestClient) -> None:
    assert refusal(chat(client, max_token=3)) == (400, "max_token", "invalid_value")
    assert refusal(chat(client, max_tokens=3, max_completion_tokens=3)) == (400, "max_tokens", "invalid_value")
    assert refusal(chat(client, messages=[{"role": "user", "content": None}])) == (400, "messages", "invalid_value")


# ------------------------------------------------------------------------------------------------ a history, put back


def test_an_answer_may_be_put_back_into_the_messages(client: TestClient) -> None:
    openai = pytest.importorskip("openai")
    message = openai.types.chat.ChatCompletionMessage.model_validate(chat(client).json()["choices"][0]["message"])
    dumped = message.model_dump()
    assert dumped.keys() >= {"annotations", "audio", "function_call", "tool_calls", "refusal"}
    short = {"role": "assistant", "content": dumped["content"]}
    longer = [chat(client, messages=[ASK, each, {"role": "user", "content": "And?"}]) for each in (dumped, short)]
    assert longer[0].json()["choices"] == longer[1].json()["choices"]
    silent = chat(client, messages=[ASK, {**dumped, "content": None, "tool_calls": [], "annotations": []}])
    assert silent.status_code == 200


# ------------------------------------------------------------------------------------------------ used


def test_penalties_and_biases_reach_the_engine(client: TestClient) -> None:
    plain = complete(client).json()["choices"][0]["text"]
    for change in ({"repetition_penalty": 3.0}, {"frequency_penalty": 2.0}, {"presence_penalty": -2.0}):
        assert complete(client, **change, max_tokens=30).json()["choices"][0]["text"][:8] != "" != plain
    forced = complete(client, logit_bias={str(ord("x")): 100}).json()["choices"][0]["text"]
    assert forced == "x" * 8
    penalized = complete(client, logit_bias={str(ord("x")): 20}, frequency_penalty=2.0, max_tokens=40).json()
    assert penalized["choices"][0]["text"] != "x" * 40
    stopped = complete(client, stop=plain[2], min_tokens=0).json()["choices"][0]
    longer = complete(client, stop=plain[2], min_tokens=6).json()["choices"][0]
    assert len(stopped["text"]) <= 2 < len(longer["text"])


def test_the_best_of_several(client: TestClient) -> None:
    ask = {"temperature": 1.2, "seed": 3, "logprobs": 0}
    every = complete(client, **ask, n=6).json()["choices"]
    mean = {each["text"]: sum(values := each["logprobs"]["token_logprobs"]) / len(values) for each in every}
    answer = complete(client, **ask, n=2, best_of=6).json()
    assert [each["text"] for each in answer["choices"]] == sorted(mean, key=lambda text: -mean[text])[:2]
    assert [each["index"] for each in answer["choices"]] == [0, 1] and answer["usage"]["completion_tokens"] == 48
    assert complete(client, n=1, best_of=3).json()["choices"][0]["logprobs"] is None


def test_echo_scores_the_prompt(client: TestClient, tiny: Any) -> None:
    import torch

    tokens = list(b"The with statement")
    expected = tiny.model(torch.tensor([tokens]))[0].log_softmax(-1)
    for prompt in ("The with statement", tokens, [tokens]):
        for most in (0, 1):
            choice = complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=most).json()["choices"][0]
            logprobs = choice["logprobs"]
            assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
            assert len(logprobs["tokens"]) == 18 + most and "".join(logprobs["tokens"]) == choice["text"]
            assert logprobs["text_offset"] == list(range(18 + most))
            for place, token in enumerate(tokens[1:], 1):
                assert logprobs["token_logprobs"][place] == pytest.approx(float(expected[place - 1, token]), abs=1e-4)
                best = max(logprobs["top_logprobs"][place].values())
                assert best == pytest.approx(float(expected[place - 1].max()), abs=1e-4)


def test_echo_with_logprobs_streams_the_same(client: TestClient) -> None:
    import json

    whole = complete(client, echo=True, logprobs=1).json()["choices"][0]
    text = complete(client, echo=True, logprobs=1, stream=True).text
    chunks = [json.loads(line[6:])["choices"][0] for line in text.split("\n") if line.startswith("data: {")]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    tokens = [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["tokens"]]
    assert tokens == whole["logprobs"]["tokens"]


def test_usage_grows_with_the_stream(client: TestClient) -> None:
    import json

    options = {"include_usage": True, "continuous_usage_stats": True}
    text = complete(client, stream=True, stream_options=options, n=2).text
    chunks = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and 0 < counts[0] < counts[-1] == 16
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {18}


# ------------------------------------------------------------------------------------------------ complete, and told


def test_no_field_of_openai_is_unknown() -> None:
    pytest.importorskip("openai")
    from openai.types import completion_create_params as completion
    from openai.types.chat import completion_create_params as chats

    for theirs, ours in ((chats, ChatRequest), (completion, CompletionRequest)):
        assert theirs.CompletionCreateParamsBase.__annotations__.keys() <= ours.model_fields.keys()


def test_the_page_has_every_field() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for model in (CompletionRequest, ChatRequest, Message, StreamOptions):
        for name, state in field_table(model):
            assert f"| `{name}` | {state} |" in page, f"docs/api.md lacks {name} of {model.__name__}"


def test_equal_is_not_enough() -> None:
    assert Only(False).check(False) is False and Only(0).check(0.0) == 0
    for field, value in ((Only(False), 0), (Only(0), False), (Only([]), {}), (Only(), 0)):
        with pytest.raises(Exception, match="not supported"):
            field.check(value)


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/openapi.json"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200 and head.content == b"" != get.content
    assert client.head("/v1/completions").status_code == 405


def test_a_body_that_is_not_declared_as_json(client: TestClient) -> None:
    answer = client.post("/v1/completions", content=b'{"prompt": "x"}')
    assert answer.status_code == 415 and "Content-Type: application/json" in answer.json()["error"]["message"]
