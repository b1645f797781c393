"""Several users at once, and a load balancer that asks for the server's health meanwhile."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import httpx
from fastapi import FastAPI

from labsupport.serving.local import serving

QUESTION = {"prompt": "The with statement", "temperature": 0, "ignore_eos": True}


@dataclass(frozen=True)
class Crowd:
    """Seconds until each user had the answer, in that order, and seconds that each health check took."""

    answers: list[float]
    checks: list[float]

    def row(self) -> dict[str, float]:
        """For a table."""
        return {
            "first answer, s": self.answers[0],
            "last answer, s": self.answers[-1],
            "health checks": len(self.checks),
            "slowest health check, ms": 1e3 * max(self.checks),
        }


async def users_at_once(app: FastAPI, users: int = 8, tokens: int = 100) -> Crowd:
    """``users`` send the same completion request at once; `/health` is asked every 20 ms until all have an answer."""
    checks: list[float] = []
    done = asyncio.Event()
    with serving(app) as url:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:

            async def user() -> float:
                (await client.post("/v1/completions", json=QUESTION | {"max_tokens": tokens})).raise_for_status()
                return time.perf_counter() - start

            async def balancer() -> None:
                while not done.is_set():
                    asked = time.perf_counter()
                    await client.get("/health")
                    checks.append(time.perf_counter() - asked)
                    await asyncio.sleep(0.02)

            await client.post("/v1/completions", json=QUESTION | {"max_tokens": 4})  # to warm up
            start = time.perf_counter()
            watching = asyncio.create_task(balancer())
            answers = sorted(await asyncio.gather(*(user() for _ in range(users))))
            done.set()
            await watching
    return Crowd(answers, checks)
