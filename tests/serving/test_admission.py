from __future__ import annotations

import asyncio

import pytest

from labsupport.inference import SamplingParams
from labsupport.serving import Overloaded, Unavailable
from labsupport.serving.admission import NOT_RUNNING, Admission
from labsupport.serving.mailbox import Mailbox, accepted


def test_once_closed_it_accepts_nothing_that_would_wait_forever() -> None:
    """When the engine's thread ends it fails all requests that `close` returns; a later one would never be answered."""

    async def scenario() -> None:
        admission = Admission(max_num_seqs=2, max_in_flight=None)
        streams = [Mailbox(name, [1], SamplingParams(), True) for name in "abc"]
        with pytest.raises(Unavailable, match=NOT_RUNNING):  # not before the thread runs, either
            admission.accept(streams[0])
        admission.refusal = None
        for stream in streams[:2]:
            admission.accept(stream)
        assert admission.close(NOT_RUNNING) == streams[:2]
        with pytest.raises(Unavailable, match=NOT_RUNNING):
            admission.accept(streams[2])
        assert [*admission.streams] == ["a", "b"]

    asyncio.run(scenario())


def test_the_engine_hears_once_of_each_arrival_and_departure() -> None:
    async def scenario() -> None:
        admission = Admission(max_num_seqs=1, max_in_flight=2)
        admission.refusal = None
        first, second, third = (Mailbox(name, [1], SamplingParams(), True) for name in "abc")
        admission.accept(first)
        assert admission.news() == ([first], []) and admission.known_to_engine() == [first]
        admission.accept(second)
        assert admission.known_to_engine() == [first], "a step that fails now cannot have lost the second"
        with pytest.raises(Overloaded):
            admission.accept(third)
        admission.leave(first)
        assert admission.news() == ([second], [first]) and admission.news() == ([], [])
        admission.forget(first)
        admission.accept(third)
        admission.finish([(second, accepted(second))])
        assert [*admission.streams.values()] == [third]

    asyncio.run(scenario())
