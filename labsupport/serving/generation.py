"""All choices of one HTTP request, generated side by side: each prompt, ``n`` times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from labsupport.inference.request import RequestOutput
from labsupport.serving.backend import Backend, Unavailable
from labsupport.serving.context import Context
from labsupport.serving.errors import ApiError
from labsupport.serving.inputs import Inputs


class Generation:
    """Asks the backend for each choice and reports their progress; read it by `finish` or by `updates`, once.

    Attributes:
        outputs: the newest output of each choice; None: not accepted yet.
    """

    def __init__(self, backend: Backend, inputs: Inputs, context: Context, stream: bool) -> None:
        self._streams = [
            backend.stream(f"{context.engine_id}-{index}", inputs.prompts[index // inputs.n], params, stream)
            for index, params in enumerate(inputs.params)
        ]
        self.outputs: list[RequestOutput | None] = [None] * len(self._streams)
        self._observation = context.observe(sum(map(len, inputs.prompts)), stream, len(self._streams))

    async def finish(self) -> list[RequestOutput]:
        """The last output of each choice. If one fails, all are aborted."""
        async with aclosing(self.updates()) as updates:
            async for _ in updates:
                pass
        return self.final

    @property
    def final(self) -> list[RequestOutput]:
        return [output for output in self.outputs if output is not None]

    async def updates(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Index and newest output of a choice, whenever there is one. A slow reader gets fewer, never stale ones."""
        newest: dict[int, RequestOutput] = {}
        errors: list[BaseException] = []
        changed = asyncio.Event()

        async def follow(index: int) -> None:
            try:
                async with aclosing(_checked(self._streams[index])) as outputs:
                    async for output in outputs:
                        newest[index] = output
                        changed.set()
            except Exception as error:
                errors.append(error)
                changed.set()

        if len(self._streams) == 1:  # the usual case needs no task
            async with aclosing(_checked(self._streams[0])) as outputs:
                async for output in outputs:
                    self._note(0, output)
                    yield 0, output
            return
        tasks = [asyncio.ensure_future(follow(index)) for index in range(len(self._streams))]
        try:
            remaining = len(tasks)
            while remaining:
                await changed.wait()
                changed.clear()
                if errors:
                    raise errors[0]
                ready, newest = newest, {}
                for index, output in ready.items():
                    self._note(index, output)
                    remaining -= output.finished
                    yield index, output
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _note(self, index: int, output: RequestOutput) -> None:
        self.outputs[index] = output
        self._observation.update(index, output)
        if output.finish_reason == "abort":
            raise Unavailable("the server shut down before the request was finished")


async def _checked(stream: AsyncIterator[RequestOutput]) -> AsyncGenerator[RequestOutput, None]:
    """A `ValueError` from a backend is about the prompt and is the client's fault; from anywhere else it is ours."""
    try:
        async for output in stream:
            yield output
    except ValueError as error:
        raise ApiError(400, str(error), "prompt", "invalid_value") from error
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()
