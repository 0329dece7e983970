"""An application that is there before it is imported: the port listens while FastAPI and the routes load.

Importing them takes longer than opening a port. `/healthz` and `/readyz` are answered at once, all
other requests wait until the application is there, which then sees them as they came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.server import caller, faults
from fewstep.server.redaction import Redactor
from fewstep.server.security import headers
from fewstep.server.security.origins import Origins
from fewstep.server.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fewstep.server.services import Services

_log = logging.getLogger("fewstep.server")

_AT_ONCE: Final = ("/healthz", "/readyz")


class Early:
    """See the module.

    Args:
        settings: of the server; names by which it may be called hold from the first request on.
        build: imports and makes the application, whose ``state.services`` are the server's; in a thread.
    """

    def __init__(self, settings: ServerSettings, build: Callable[[], FastAPI]) -> None:
        self._settings = settings
        self._build = build
        self._origins = Origins(settings)
        self._app: ASGIApp | None = None
        self._services: Services | None = None
        self.error: Exception | None = None
        """Why there will be no application."""

    @property
    def broken(self) -> bool:
        """Whether only a new process helps."""
        return self.error is not None or (self._services is not None and self._services.broken)

    def drain(self) -> bool:
        """As `fewstep.server.services.Services.drain`."""
        return self._services is None or self._services.drain()

    def stop(self) -> None:
        """As `fewstep.server.services.Services.stop`."""
        if self._services is not None:
            self._services.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, WebSocket, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._app is None:
            if scope["type"] == "http" and scope["path"] in _AT_ONCE and scope["method"] == "GET":
                await self._alive(scope, receive, send)
                return
            await self._there.wait()
        if self._app is not None:
            await self._app(scope, receive, send)

    async def _alive(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller.attach(
            scope, caller.Caller(request_id=headers.request_id(scope), redact=Redactor(self._settings))
        )
        try:
            self._origins.check(scope)
            answer: Response = JSONResponse({"status": "ok"})
            if scope["path"] == "/readyz":
                answer = JSONResponse({"status": "not ready"}, 503, headers={"Retry-After": "1"})
        except Exception as error:
            answer = faults.answer(scope, error)
        await answer(scope, receive, headers.with_headers(scope, send, {}))

    async def _live(self, receive: Receive, send: Send) -> None:
        self._there, end = asyncio.Event(), asyncio.Event()
        await receive()  # lifespan.startup
        task = asyncio.create_task(self._run(end))
        await send({"type": "lifespan.startup.complete"})
        message: Message = await receive()
        assert message["type"] == "lifespan.shutdown"
        end.set()
        await task
        await send({"type": "lifespan.shutdown.complete"})

    async def _run(self, end: asyncio.Event) -> None:
        try:
            app = await asyncio.to_thread(self._build)
            async with app.router.lifespan_context(app):
                self._services = app.state.services
                self._app = app
                self._there.set()
                await end.wait()
        except Exception as error:
            self.error = error
            if not isinstance(error, ImportError):
                _log.exception("the server could not start")
        finally:
            self._there.set()
