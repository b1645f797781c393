"""The contract with vLLM, against a stand-in with its interface that computes with the course's engine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving.vllm_behaviour import behaviour

from labsupport.inference import LLMEngine, SamplingParams
from labsupport.serving import EngineThread, Overloaded, Unavailable, create_app
from labsupport.serving.vllm_backend import VLLMBackend

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=2)


class VLLMValidationError(Exception):
    """No ValueError, as vLLM's own."""


class TheirParams:
    """Like `vllm.SamplingParams`: unknown names are errors, and so is ``max_tokens=0``."""

    def __init__(
        self, *, max_tokens: int = 16, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
        seed: int | None = None, stop: Sequence[str] = (), stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False, logprobs: int | None = None, output_kind: int = 0,
        prompt_logprobs: int | None = None, min_tokens: int = 0, repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0, frequency_penalty: float = 0.0, logit_bias: dict[int, float] | None = None,
    ) -> None:  # fmt: skip
        if max_tokens < 1:
            raise VLLMValidationError("max_tokens must be at least 1")
        self.output_kind = output_kind
        self.ours = SamplingParams(
            max_tokens,
            temperature,
            top_k,
            top_p,
            seed,
            stop,
            stop_token_ids,
            ignore_eos,
            logprobs,
            prompt_logprobs,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            min_tokens,
        )


class AsyncLLM:
    """Like `vllm.v1.engine.async_llm.AsyncLLM`, as far as the adapter uses it."""

    engine: LLMEngine
    errored = False
    stopped = False

    def __init__(self, arguments: SimpleNamespace, stat_loggers: list[Any]) -> None:
        self.arguments = arguments
        self.model_config = SimpleNamespace(max_model_len=arguments.max_model_len or 2048)
        self.logger = stat_loggers[0](SimpleNamespace(), 0)
        self.logger.log_engine_initialized()
        self.inner = EngineThread(self.engine)
        self.aborted: set[str] = set()

    @classmethod
    def from_engine_args(cls, arguments: SimpleNamespace, stat_loggers: list[Any] | None = None) -> AsyncLLM:
        return cls(arguments, stat_loggers or [])

    def get_tokenizer(self) -> Any:
        return HuggingFaceLike(self.engine.tokenizer)

    async def generate(self, prompt: dict[str, Any], sampling_params: TheirParams, request_id: str) -> Any:
        await self.inner.start()
        if not 0 < len(prompt["prompt_token_ids"]) < self.model_config.max_model_len:
            raise VLLMValidationError("the prompt is empty or too long")
        ours = self.inner.stream(request_id, prompt["prompt_token_ids"], sampling_params.ours)
        try:
            async for each in ours:
                if not each.token_ids or (sampling_params.output_kind == 2 and not each.finished):
                    continue
                if request_id in self.aborted:
                    each = replace(each, finish_reason="abort")
                logprobs: Any = each.logprobs
                if logprobs is not None:
                    logprobs = [{t: SimpleNamespace(logprob=v) for t, v in p.items()} for p in logprobs]
                scored: Any = each.prompt_logprobs
                if scored is not None:
                    scored = [p and {t: SimpleNamespace(logprob=v) for t, v in p.items()} for p in scored]
                only = SimpleNamespace(
                    index=0,
                    text=each.text,
                    token_ids=each.token_ids,
                    logprobs=logprobs,
                    finish_reason=each.finish_reason,
                )
                cache = SimpleNamespace(queries=3, hits=1)
                load = SimpleNamespace(
                    num_running_reqs=1, num_waiting_reqs=0, kv_cache_usage=0.5, prefix_cache_stats=cache
                )
                self.logger.record(load, SimpleNamespace(num_preempted_reqs=0), mm_cache_stats=None, engine_idx=0)
                yield SimpleNamespace(
                    request_id=request_id, prompt_token_ids=each.prompt_token_ids, outputs=[only],
                    finished=each.finished, num_cached_tokens=each.num_cached_tokens, prompt_logprobs=scored,
                )  # fmt: skip
                if each.finished:
                    return
        finally:
            await ours.aclose()  # type: ignore[attr-defined]

    async def abort(self, request_ids: list[str]) -> None:
        self.aborted.update(request_ids)

    def shutdown(self) -> None:
        self.stopped = True
        self.inner._stop()


class HuggingFaceLike:
    chat_template = "{{ messages }}"

    def __init__(self, inner: Any) -> None:
        self.inner, self.eos_token_id = inner, inner.eos_token_id

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self.inner.decode(ids)

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> list[int]:
        assert options == {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
        return self.encode("".join(f"<{turn['role']}>{turn['content']}" for turn in turns))


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, engine: LLMEngine) -> Iterator[None]:
    monkeypatch.setattr(AsyncLLM, "engine", engine, raising=False)

    def module(name: str, **names: Any) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", SamplingParams=TheirParams, TokensPrompt=dict)
    module("vllm.sampling_params", RequestOutputKind=SimpleNamespace(CUMULATIVE=0, DELTA=1, FINAL_ONLY=2))
    module("vllm.engine")
    module("vllm.engine.arg_utils", AsyncEngineArgs=SimpleNamespace)
    for name in ("vllm.v1", "vllm.v1.engine", "vllm.v1.metrics"):
        module(name)
    module("vllm.v1.engine.async_llm", AsyncLLM=AsyncLLM)
    module("vllm.v1.metrics.loggers", StatLoggerBase=object)
    yield


def backend(**options: Any) -> VLLMBackend:
    return VLLMBackend.of_model("some/model", max_num_seqs=4, **options)


async def outputs(made: VLLMBackend, params: SamplingParams = GREEDY, **more: Any) -> list[Any]:
    return [output async for output in made.stream("a", list(b"The with"), params, **more)]


def test_the_contract(vllm: None, engine: LLMEngine) -> None:
    expected = engine.generate(["The with"], GREEDY)[0]

    async def scenario() -> Any:
        made = backend()
        await made.start()
        assert made.alive() and made.ready() and made.model_name == "some/model" and made.max_model_len == 2048
        streamed, whole = await outputs(made), await outputs(made, intermediate=False)
        stats = made.stats()
        await made.shutdown(1)
        assert not made.alive() and not made.ready() and made.engine.stopped
        with pytest.raises(Unavailable):
            await outputs(made)
        return streamed, whole, stats

    streamed, whole, stats = asyncio.run(scenario())
    assert streamed[0].token_ids == [] and len(whole) == 1
    for last in (streamed[-1], whole[0]):
        assert (last.text, last.token_ids, last.finish_reason) == (expected.text, expected.token_ids, "length")
        assert last.logprobs == expected.logprobs and last.times.finished is not None
    assert stats.finished == {"length": 2} and stats.generation_tokens == 16 and stats.prompt_tokens == 16
    assert stats.kv_cache_usage_perc == 0.5 and stats.prefix_cache_hits > 0


def test_the_same_app_runs_in_front_of_it(vllm: None, engine: LLMEngine) -> None:
    body = {"prompt": "The with", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    expected = engine.generate(["The with"], GREEDY)[0].text
    with TestClient(create_app(backend())) as client:
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == expected
        assert client.post("/v1/completions", json={**body, "stream": True}).text.endswith("[DONE]\n\n")
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=chat).json()["usage"]["prompt_tokens"] == len("<user>x")
        refused = client.post("/v1/completions", json={**body, "max_tokens": 0})
        assert refused.status_code == 400 and "vLLM" in refused.json()["error"]["message"]
        assert client.get("/ready").status_code == 200 and "kv_cache_usage_perc" in client.get("/metrics").text


def test_the_stand_in_does_what_vllm_was_recorded_to_do(vllm: None) -> None:
    made = backend()
    kinds = SimpleNamespace(CUMULATIVE=0, FINAL_ONLY=2)
    found = asyncio.run(
        behaviour(made.engine, lambda **more: TheirParams(temperature=0.0, ignore_eos=True, **more), kinds)
    )
    made.engine.shutdown()
    assert found == json.loads((Path(__file__).parent / "vllm_behaviour.json").read_text())


def test_its_queue_is_bounded_by_the_adapter(vllm: None) -> None:
    async def scenario() -> None:
        made = VLLMBackend.of_model("m", max_num_seqs=1, max_waiting=0)
        first = made.stream("a", [65], GREEDY)
        await anext(first)
        with pytest.raises(Overloaded):
            await anext(made.stream("b", [65], GREEDY))
        await first.aclose()  # type: ignore[attr-defined]
        assert (await outputs(made))[-1].finished
        await made.shutdown(1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "expected"), [("EngineDeadError", Unavailable), ("VLLMValidationError", ValueError), ("Other", Exception)]
)
def test_its_errors_are_translated(vllm: None, monkeypatch: pytest.MonkeyPatch, name: str, expected: Any) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise type(name, (Exception,), {})("what it says")
        yield

    async def scenario() -> None:
        made = backend()
        monkeypatch.setattr(made.engine, "generate", fail)
        with pytest.raises(expected):
            await outputs(made)
        made.engine.errored = True
        assert not made.alive()
        with pytest.raises(Unavailable):
            await outputs(made)

    asyncio.run(scenario())


def test_without_vllm_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="install it"):
        VLLMBackend.of_model("m", 1)
