from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest

from labsupport.inference import LLMEngine, SamplingParams
from labsupport.serving import EngineThread, GenerationFailed, Overloaded, Unavailable, as_backend

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = SamplingParams(max_tokens=300, temperature=0.0, ignore_eos=True)


async def last(backend: EngineThread, name: str, prompt: Any, params: SamplingParams = GREEDY, **more: Any) -> Any:
    return [output async for output in backend.stream(name, prompt, params, **more)][-1]


def test_gives_what_the_engine_alone_gives(engine: LLMEngine) -> None:
    prompts = ["The with statement", "import ", "def f(x):", "A class", "Note that", "x"]
    alone = [output.token_ids for output in engine.generate(prompts, GREEDY)]

    async def scenario() -> list[Any]:
        backend = EngineThread(engine)
        await backend.start()
        outputs = await asyncio.gather(*(last(backend, str(i), prompt) for i, prompt in enumerate(prompts)))
        await backend.shutdown(0)
        return outputs

    outputs = asyncio.run(scenario())
    assert [output.token_ids for output in outputs] == alone
    assert all(output.finish_reason == "length" for output in outputs)


def test_outputs_are_cumulative_and_end_once(engine: LLMEngine) -> None:
    async def scenario() -> tuple[list[Any], list[Any]]:
        backend = EngineThread(engine)
        await backend.start()
        streamed = [output async for output in backend.stream("a", "The with", GREEDY)]
        whole = [output async for output in backend.stream("b", "The with", GREEDY, intermediate=False)]
        await backend.shutdown(0)
        return streamed, whole

    streamed, whole = asyncio.run(scenario())
    assert [output.finished for output in streamed] == [False] * (len(streamed) - 1) + [True]
    for before, after in pairwise(streamed):
        assert after.token_ids[: len(before.token_ids)] == before.token_ids and after.text.startswith(before.text)
    assert len(whole) == 1 and whole[0].token_ids == streamed[-1].token_ids


def test_closing_a_stream_frees_its_blocks_within_a_step(
    paused: Any, until: Callable[..., None], released: Callable[[LLMEngine], bool]
) -> None:
    async def scenario() -> int:
        backend = EngineThread(paused)
        await backend.start()
        opened: Any = backend.stream("a", "The with statement", LONG)
        async with aclosing(opened) as stream:
            await anext(stream)  # accepted
            paused.permits.release()
            assert (await anext(stream)).token_ids
            assert paused.cache.usage()["used_blocks"] > 0
            await asyncio.to_thread(paused.entered.wait, 60)
        paused.permits.release()  # the step that was under way when it left: no more are permitted
        await asyncio.to_thread(until, lambda: not backend.admission.streams, "the request is gone")
        assert released(paused)
        steps = paused.stats().num_steps
        await backend.shutdown(0)
        return steps

    assert asyncio.run(scenario()) <= 2


def test_cancelling_a_reader_aborts(engine: LLMEngine, released: Callable[[LLMEngine], bool]) -> None:
    async def scenario() -> None:
        backend = EngineThread(engine)
        await backend.start()
        task = asyncio.create_task(last(backend, "a", "The", LONG))
        while not engine.scheduler.requests:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while backend.admission.streams:
            await asyncio.sleep(0.001)
        await backend.shutdown(0)

    asyncio.run(scenario())
    assert released(engine) and engine.stats().finished == {"abort": 1}


def test_the_queue_is_bounded(paused: Any) -> None:
    async def scenario() -> Overloaded:
        backend = EngineThread(paused, max_waiting=1)  # 2 run, 1 waits
        await backend.start()
        tasks = [asyncio.create_task(last(backend, str(i), "The")) for i in range(3)]
        await asyncio.to_thread(paused.entered.wait, 60)
        while len(backend.admission.streams) < 3:
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded) as caught:
            await last(backend, "one too many", "The")
        paused.run_free()
        outputs = await asyncio.gather(*tasks)
        assert all(len(output.token_ids) == 12 for output in outputs), "those accepted are served"
        assert len((await last(backend, "later", "The")).token_ids) == 12
        await backend.shutdown(0)
        return caught.value

    assert asyncio.run(scenario()).retry_after >= 1


def test_a_request_that_is_waiting_shows_in_the_stats_during_a_step(paused: Any) -> None:
    async def scenario() -> None:
        backend = EngineThread(paused)
        await backend.start()
        first = asyncio.create_task(last(backend, "a", "The"))
        await asyncio.to_thread(paused.entered.wait, 60)
        second = asyncio.create_task(last(backend, "b", "The"))
        while len(backend.admission.arrived) < 1:
            await asyncio.sleep(0.001)
        assert backend.stats().num_requests_waiting >= 1 and backend.alive() and backend.ready()
        paused.run_free()
        await asyncio.gather(first, second)
        await backend.shutdown(0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("prompt", "params"),
    [([], GREEDY), ([1, 999], GREEDY), ([1] * 3000, GREEDY), ([1], SamplingParams(max_tokens=4000))],
)
def test_a_bad_prompt_is_a_value_error_and_harms_nobody(engine: LLMEngine, prompt: Any, params: SamplingParams) -> None:
    async def scenario() -> Any:
        backend = EngineThread(engine)
        await backend.start()
        good = asyncio.create_task(last(backend, "good", "The with"))
        with pytest.raises(ValueError, match="prompt"):
            await last(backend, "bad", prompt, params)
        output = await good
        await backend.shutdown(0)
        return output

    assert len(asyncio.run(scenario()).token_ids) == 12


def test_shutdown_lets_running_requests_finish(paused: Any) -> None:
    async def scenario() -> Any:
        backend = EngineThread(paused)
        await backend.start()
        task = asyncio.create_task(last(backend, "a", "The"))
        await asyncio.to_thread(paused.entered.wait, 60)
        stopping = asyncio.create_task(backend.shutdown(60))
        while backend.ready():
            await asyncio.sleep(0.001)
        with pytest.raises(Unavailable):
            await last(backend, "late", "The")
        paused.run_free()
        output = await task
        await stopping
        assert not backend.alive()
        return output

    assert asyncio.run(scenario()).finish_reason == "length"


def test_shutdown_cancels_what_does_not_finish(
    paused: Any, until: Callable[..., None], released: Callable[[LLMEngine], bool]
) -> None:
    async def scenario() -> Any:
        backend = EngineThread(paused)
        await backend.start()
        task = asyncio.create_task(last(backend, "a", "The", LONG))
        await asyncio.to_thread(paused.entered.wait, 60)
        stopping = asyncio.create_task(backend.shutdown(0.01))
        await asyncio.to_thread(until, lambda: backend._stopping, "the time to finish is over")
        paused.permits.release()  # the step that was under way
        output = await task
        paused.run_free()
        await stopping
        return output

    assert asyncio.run(scenario()).finish_reason == "abort" and released(paused)


def test_it_can_be_started_again(engine: LLMEngine) -> None:
    async def scenario() -> None:
        backend = EngineThread(engine)
        for name in "ab":
            await backend.start()
            assert (await last(backend, name, "The")).finished
            await backend.shutdown(0)
            with pytest.raises(Unavailable):
                await last(backend, "between", "The")

    asyncio.run(scenario())


def test_a_failing_step_fails_its_requests_and_not_the_next(
    engine: LLMEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, failures = engine.runner.forward, iter([True])

    def fail_once(plan: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("secret detail")
        return forward(plan)

    monkeypatch.setattr(engine.runner, "forward", fail_once)

    async def scenario() -> Any:
        backend = EngineThread(engine)
        await backend.start()
        with pytest.raises(GenerationFailed) as caught:
            await last(backend, "a", "The")
        assert "secret" not in str(caught.value)
        output = await last(backend, "b", "The")
        assert backend.alive()
        await backend.shutdown(0)
        return output

    with caplog.at_level(logging.ERROR, "labsupport.serving"):
        assert len(asyncio.run(scenario()).token_ids) == 12
    assert "secret detail" in caplog.text


def test_an_engine_that_always_fails_is_dead(engine: LLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(plan: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(engine.runner, "forward", fail)

    async def scenario() -> None:
        backend = EngineThread(engine)
        await backend.start()
        for name in "abc":
            with pytest.raises(GenerationFailed):
                await last(backend, name, "The")
        while backend.alive():
            await asyncio.sleep(0.001)
        with pytest.raises(Unavailable):
            await last(backend, "d", "The")
        await backend.shutdown(0)

    asyncio.run(scenario())


def test_an_engine_that_hangs_is_not_alive(paused: Any) -> None:
    async def scenario() -> None:
        backend = EngineThread(paused, stall_seconds=0.02)
        await backend.start()
        assert backend.alive()
        task = asyncio.create_task(last(backend, "a", "The"))
        while backend.alive():
            await asyncio.sleep(0.005)
        paused.run_free()
        await task
        await backend.shutdown(0)

    asyncio.run(scenario())


def test_one_engine_has_one_thread(engine: LLMEngine) -> None:
    backend = as_backend(engine)
    assert as_backend(engine, max_waiting=3) is backend and backend.max_in_flight == 4 + 3
    assert as_backend(backend) is backend
    with pytest.raises(ValueError, match="LLMEngine"):
        as_backend(object())


def test_two_users_of_one_thread_stop_it_together(engine: LLMEngine) -> None:
    async def scenario() -> None:
        backend = EngineThread(engine)
        await backend.start()
        await backend.start()
        await backend.shutdown(0)
        assert (await last(backend, "a", "The")).finished
        await backend.shutdown(0)
        assert not backend.alive()

    asyncio.run(scenario())


def test_readers_in_several_event_loops(engine: LLMEngine) -> None:
    backend = EngineThread(engine)
    asyncio.run(backend.start())
    first = asyncio.run(last(backend, "a", "The with"))
    second = asyncio.run(last(backend, "b", "The with"))
    asyncio.run(backend.shutdown(0))
    assert first.token_ids == second.token_ids


def test_the_engine_may_be_used_directly_while_nothing_is_served(engine: LLMEngine) -> None:
    backend = EngineThread(engine)
    asyncio.run(backend.start())
    for turn in range(5):
        served = asyncio.run(last(backend, str(turn), "The with"))
        assert engine.generate(["The with"], GREEDY)[0].token_ids == served.token_ids
    asyncio.run(backend.shutdown(0))
