"""A load tester that does not overlook the wait for a slow server.

**Open loop**: like those of real users, requests are due at times drawn beforehand (a Poisson process), whatever the
server does. **Closed loop**: a fixed number of clients, each sending when it has its answer. A slow server then gets
less load, and its latencies say nothing about users who would not have waited. With both a rate and a limit on
connections, a request may be sent late because no connection is free. To count its latency from when it was sent would
hide that wait ("coordinated omission", Tene, "How not to measure latency", 2015), so it counts from when it was due.
The tester itself may fall behind, too: a result tells when its request really left (`Result.lag`).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from labsupport.progress import progress_bar
from labsupport.serving.load.workload import Planned


@dataclass
class Result:
    """Times are seconds from the start of the test; ``due`` is when to send the request, ``sent`` when it was sent.

    Attributes:
        free: when one of the connections was free for it; ``due`` if their number is not limited.
        status: the HTTP status; 0: there was no answer.
        token_times: when each piece of text came.
        error: what went wrong; None: nothing.
    """

    due: float
    sent: float
    free: float = 0.0
    finished: float = math.nan
    status: int = 0
    token_times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None

    @property
    def time_to_first_token(self) -> float | None:
        return self.token_times[0] - self.due if self.token_times else None

    @property
    def inter_token(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.token_times, self.token_times[1:], strict=False)]

    @property
    def latency(self) -> float:
        """From when the request was due until its last token."""
        return self.finished - self.due

    @property
    def lag(self) -> float:
        """How much later the tester sent it than it could have been sent: its own slowness, not the server's."""
        return max(0.0, self.sent - max(self.due, self.free))

    @property
    def service_time(self) -> float:
        """From when it was sent: what testers that omit the wait report."""
        return self.finished - self.sent


async def run_load(
    url: str,
    plan: Sequence[Planned],
    concurrency: int | None = None,
    model: str | None = None,
    api_key: str | None = None,
    timeout: float = 120.0,
    ignore_eos: bool = False,
    progress: bool = False,
    begin: Callable[[], float] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[Result]:
    """Send the plan's requests to ``url``/v1/completions, streamed. One result per request, in the plan's order.

    Args:
        concurrency: how many requests may be under way at a time; None: as many as are due.
        begin: called when all is ready to start; returns the time of the event loop's clock at which to start.
        transport: replaces the network, for tests.

    Raises:
        ValueError: the plan is empty, a request has no time in an open loop, or there is no such server.
    """
    if not plan:
        raise ValueError("plan must hold at least one request; it holds none")
    if concurrency is None and any(each.at is None for each in plan):
        raise ValueError("concurrency must be given if requests have no time")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=concurrency or 100)
    async with httpx.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=timeout,
        limits=limits,
        transport=transport,
    ) as client:
        body: dict[str, Any] = {"model": model or await first_model(client), "stream": True}
        body["stream_options"] = {"include_usage": True}
        if ignore_eos:
            body["ignore_eos"] = True
        with progress_bar(None, "requests", "request", progress, total=len(plan)) as bar:
            return await _Run(client, plan, body, concurrency, bar, begin).results()


async def first_model(client: httpx.AsyncClient) -> str:
    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        return response.json()["data"][0]["id"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"url must lead to a server with OpenAI's API; {client.base_url} does not: {reason}"
        ) from error


class _Run:
    def __init__(
        self,
        client: httpx.AsyncClient,
        plan: Sequence[Planned],
        body: dict[str, Any],
        concurrency: int | None,
        bar: Any,
        begin: Callable[[], float] | None,
    ) -> None:
        self.client, self.plan, self.body, self.bar = client, plan, body, bar
        self.places = asyncio.Semaphore(concurrency) if concurrency else None
        self.loop = asyncio.get_running_loop()
        self.start = self.loop.time() if begin is None else begin()

    async def results(self) -> list[Result]:
        await asyncio.sleep(self.start - self.loop.time())
        tasks = []
        async with asyncio.TaskGroup() as group:
            for each in self.plan:
                if each.at is not None:
                    await asyncio.sleep(self.start + each.at - self.loop.time())
                elif self.places is not None:  # closed loop: a request is due when a client is free
                    await self.places.acquire()
                tasks.append(group.create_task(self._one(each)))
        return [task.result() for task in tasks]

    async def _one(self, planned: Planned) -> Result:
        if planned.at is not None and self.places is not None:
            await self.places.acquire()
        now = self.loop.time() - self.start
        due = now if planned.at is None else planned.at
        result = Result(due, now, due if self.places is None else max(due, now))
        try:
            await self._send(planned, result)
        except (httpx.HTTPError, ValueError, LookupError) as error:
            result.error = f"{type(error).__name__}: {error}".rstrip(": ")
        finally:
            result.finished = self.loop.time() - self.start
            if self.places is not None:
                self.places.release()
            self.bar.update()
        return result

    async def _send(self, planned: Planned, result: Result) -> None:
        body = {**self.body, "prompt": planned.prompt, "max_tokens": planned.max_tokens}

        async def trace(event: str, _: Any) -> None:
            if event == "http11.send_request_body.complete":
                result.sent = self.loop.time() - self.start

        extensions = {"trace": trace}
        async with self.client.stream("POST", "/v1/completions", json=body, extensions=extensions) as response:
            result.status = response.status_code
            if response.status_code != 200:
                result.error = f"status {response.status_code}"
                await response.aread()
                return
            done = False
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    self._event(json.loads(line[6:]), result)
            if not done and result.error is None:
                result.error = "the stream ended early"

    def _event(self, data: dict[str, Any], result: Result) -> None:
        if "error" in data:
            result.error = str(data["error"].get("message", data["error"]))
        if any(choice["text"] for choice in data.get("choices", [])):
            result.token_times.append(self.loop.time() - self.start)
        if usage := data.get("usage"):
            result.prompt_tokens, result.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
