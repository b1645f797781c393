"""Replies that come twice, again from another worker, late, or never: the answer is right, or the request fails."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.inference.request import RequestOutput, RequestTimes
from labsupport.inference.sampling import SamplingParams
from labsupport.serving.backend import GenerationFailed

pytest.importorskip("redis")
from labsupport.serving.stack.job import Job
from labsupport.serving.stack.replies import ReplyStream, make_error, make_reply

LOOP = asyncio.new_event_loop()  # one for all examples: making it costs more than using it


def job_of(tries: int = 1) -> Job:
    return Job("id", "request", "server", [1], SamplingParams(max_tokens=50), entry="1-1", tries=tries)


def outputs_of(tokens: list[int]) -> list[RequestOutput]:
    """One per token. The text lags behind, as with a tokenizer that holds back what may still change."""
    found = []
    for number in range(1, len(tokens) + 1):
        last = number == len(tokens)
        text = "".join(chr(token) for token in tokens[: number if last else number - number % 3])
        reason: Any = "stop" if last else None
        found.append(RequestOutput("request", [1], text, tokens[:number], reason, None, 0, RequestTimes()))
    return found


def replies_of(outputs: list[RequestOutput], cuts: list[int], tries: int) -> list[dict[str, Any]]:
    """As a worker sends them: outputs that the next one overtakes are skipped."""
    sent, found = None, []
    for number, output in enumerate(outputs):
        if output.finished or number in cuts:
            found.append(make_reply(job_of(tries), output, sent))
            sent = output
    return found


async def read_all(stream: ReplyStream, replies: list[dict[str, Any]], read_every: int) -> list[RequestOutput]:
    seen = []
    for number, reply in enumerate(replies):
        stream.put(reply)
        if number % read_every == 0 and stream._changed.is_set():
            seen.append(await stream.next())
    if stream._changed.is_set():
        seen.append(await stream.next())
    return seen


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_replies_of_several_tries_give_each_token_once(data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(97, 122), min_size=1, max_size=20))
    outputs = outputs_of(tokens)
    replies: list[dict[str, Any]] = []
    tries = data.draw(st.integers(1, 3))
    for number in range(1, tries + 1):
        part = replies_of(outputs, data.draw(st.lists(st.integers(0, 20))), number)
        if number < tries:
            part = part[: data.draw(st.integers(0, len(part) - 1))]  # its worker was killed
        for reply in part:
            replies += [reply] * data.draw(st.integers(1, 2))  # sent again after a lost connection
    stale = data.draw(st.lists(st.sampled_from(replies), max_size=3))  # from a worker that was stopped
    replies += stale
    seen = LOOP.run_until_complete(read_all(ReplyStream(job_of()), replies, data.draw(st.integers(1, 4))))
    assert seen[-1].token_ids == tokens and seen[-1].text == "".join(map(chr, tokens))
    assert [each.finished for each in seen] == [False] * (len(seen) - 1) + [True]
    for before, after in itertools.pairwise(seen):
        assert after.token_ids[: len(before.token_ids)] == before.token_ids and after.text.startswith(before.text)


def test_a_second_try_that_differs_replaces_what_nobody_has_read() -> None:
    first, second = outputs_of([97, 98, 99, 100]), outputs_of([97, 98, 120, 121, 122])
    stream = ReplyStream(job_of())
    for reply in replies_of(first, [0, 1, 2], 1)[:-1] + replies_of(second, [0, 2], 2):
        stream.put(reply)
    (last,) = asyncio.run(read_all(stream, [], 1))
    assert last.text == "abxyz" and last.token_ids == [97, 98, 120, 121, 122]


def test_a_second_try_that_differs_from_what_was_read_fails() -> None:
    first, second = outputs_of([97, 98, 99, 100]), outputs_of([97, 98, 120, 121, 122])
    stream = ReplyStream(job_of())
    asyncio.run(read_all(stream, replies_of(first, [0, 1, 2], 1)[:-1], 1))
    with pytest.raises(GenerationFailed, match="another text"):
        asyncio.run(read_all(stream, replies_of(second, [0, 2], 2), 1))


def test_a_reply_that_is_missing_fails_and_does_not_leave_a_gap() -> None:
    replies = replies_of(outputs_of([97, 98, 99, 100]), [0, 1, 2], 1)
    stream = ReplyStream(job_of())
    with pytest.raises(GenerationFailed):
        asyncio.run(read_all(stream, [replies[0], *replies[2:]], 1))


def test_an_error_ends_the_request() -> None:
    stream = ReplyStream(job_of())
    stream.put(make_error(job_of(), "invalid", "prompt must be nicer"))
    with pytest.raises(ValueError, match="nicer"):
        asyncio.run(stream.next())
    assert stream.done
