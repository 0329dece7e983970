"""The port answers before the application is imported."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from fewstep.server.early import Early
from fewstep.server.settings import ServerSettings


class Slow:
    """An application whose import takes as long as the test wants."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go = threading.Event()
        self.error = error
        self.ended = False

    def build(self) -> FastAPI:
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            self.ended = True

        app = FastAPI(lifespan=lifespan)
        app.state.services = SimpleNamespace(broken=False, drain=lambda: False, stop=lambda: None)
        app.add_api_route("/late", lambda: {"path": "late"})
        app.add_api_route("/healthz", lambda: {"status": "of the application"})
        return app


@asynccontextmanager
async def serving(early: Early) -> AsyncIterator[httpx.AsyncClient]:
    """Its lifespan as a server runs it, and a client."""
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    told: asyncio.Queue[Any] = asyncio.Queue()
    await messages.put({"type": "lifespan.startup"})
    life = asyncio.create_task(early({"type": "lifespan"}, messages.get, told.put))
    assert (await asyncio.wait_for(told.get(), 5))["type"] == "lifespan.startup.complete"
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(early), base_url="http://127.0.0.1:7860"
    ) as client:
        yield client
    await messages.put({"type": "lifespan.shutdown"})
    await asyncio.wait_for(life, 5)


def test_health_is_told_at_once_and_the_rest_waits() -> None:
    async def run() -> None:
        slow = Slow()
        early = Early(ServerSettings(), slow.build)
        async with serving(early) as client:
            alive = await client.get("/healthz")
            assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
            assert alive.headers["x-content-type-options"] == "nosniff"
            assert (await client.get("/readyz")).status_code == 503
            late = asyncio.create_task(client.get("/late"))
            await asyncio.sleep(0.05)
            assert not late.done()
            assert early.drain()  # nothing runs yet
            slow.go.set()
            assert (await asyncio.wait_for(late, 5)).json() == {"path": "late"}
            assert (await client.get("/healthz")).json() == {"status": "of the application"}
            assert not early.drain()  # now the application's word counts
        assert slow.ended

    asyncio.run(run())


def test_other_names_are_refused_before_the_application_is_there() -> None:
    async def run() -> None:
        slow = Slow()
        async with serving(Early(ServerSettings(), slow.build)) as client:
            answer = await client.get("/healthz", headers={"Host": "evil.example"})
            slow.go.set()
            assert answer.status_code == 421
            assert "evil.example" not in answer.headers.get("location", "")

    asyncio.run(run())


@pytest.mark.parametrize("error", [ImportError("no module", name="fastapi"), RuntimeError("of a bug")])
def test_an_application_that_cannot_be_made_ends_the_server(error: Exception) -> None:
    async def run() -> None:
        slow = Slow(error)
        early = Early(ServerSettings(), slow.build)
        async with serving(early):
            assert not early.broken
            slow.go.set()
            for _ in range(100):
                if early.broken:
                    break
                await asyncio.sleep(0.02)
            assert early.broken
            assert early.error is error

    asyncio.run(run())
