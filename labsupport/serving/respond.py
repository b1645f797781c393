"""The last step of a request: its answer is sent whole, or as events while it is generated."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from labsupport.inference.request import RequestOutput
from labsupport.serving.answer import Answer
from labsupport.serving.disconnect import until_disconnect
from labsupport.serving.errors import error_of
from labsupport.serving.generation import Generation
from labsupport.serving.sse import DONE, EventStream, event

Updates = AsyncGenerator[tuple[int, RequestOutput], None]


async def respond_whole(request: Request, generation: Generation, answer: Answer) -> Response:
    """When all choices are finished. If the client goes, they are aborted."""
    return JSONResponse(answer.whole(await until_disconnect(request.receive, generation.finish())))


async def respond_streaming(request: Request, generation: Generation, answer: Answer) -> Response:
    """Once every choice is accepted: until then an error has a status of its own, after that it is only an event."""
    updates = generation.updates()
    first: list[tuple[int, RequestOutput]] = []

    async def accepted() -> None:
        while any(output is None for output in generation.outputs):
            first.append(await anext(updates))

    try:
        await until_disconnect(request.receive, accepted())
    except BaseException:
        await updates.aclose()
        raise
    return EventStream(_events(first, updates, generation, answer))


async def _events(
    first: list[tuple[int, RequestOutput]], updates: Updates, generation: Generation, answer: Answer
) -> AsyncGenerator[bytes, None]:
    async with aclosing(updates):
        try:
            for opening in answer.opening():
                yield event(opening)
            for index, output in first:
                for chunk in answer.chunks(index, output):
                    yield event(chunk)
            async for index, output in updates:
                for chunk in answer.chunks(index, output):
                    yield event(chunk)
        except Exception as error:  # the status is sent: the `openai` client raises on this event
            yield event(error_of(error)[1])
            return
    for closing in answer.closing(generation.final):
        yield event(closing)
    yield DONE
