from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from labsupport.inference import LLMEngine
from labsupport.lm import LanguageModel
from labsupport.serving import create_app, serving
from labsupport.serving.load.crowd import users_at_once


def test_an_app_is_served_for_as_long_as_the_block_lasts() -> None:
    app = FastAPI()

    @app.get("/")
    def root() -> str:
        return "here"

    with serving(app) as url:
        assert httpx.get(url).json() == "here"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_an_app_that_does_not_start_is_an_error_and_no_endless_wait() -> None:
    @asynccontextmanager
    async def broken(_: FastAPI) -> AsyncIterator[None]:
        raise OSError("no model")
        yield

    with pytest.raises(RuntimeError, match="before it had started"), serving(FastAPI(lifespan=broken)):
        pass


def test_a_crowd_is_answered_and_health_asked_meanwhile(tiny: LanguageModel) -> None:
    crowd = asyncio.run(users_at_once(create_app(LLMEngine(tiny, max_num_seqs=4)), users=3, tokens=8))
    assert len(crowd.answers) == 3 and crowd.answers == sorted(crowd.answers)
    row = crowd.row()
    assert row["health checks"] == len(crowd.checks) >= 1
    assert row["last answer, s"] == crowd.answers[-1] and row["slowest health check, ms"] == 1e3 * max(crowd.checks)
