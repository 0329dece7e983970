"""The live mode's WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from fewstep.errors import FewstepError, TooLarge
from fewstep.server import caller, live, media
from fewstep.server.live import Session, Sessions, Studio
from fewstep.server.schemas.live import IDLE_MS, Draw, Ping, Resume, Stop, Unclear, parse
from fewstep.server.services import Services, services_of

if TYPE_CHECKING:
    from fewstep.server.orders import Image

_log = logging.getLogger("fewstep.server")

router = APIRouter()

MAX_MESSAGE = 8 << 20
"""Bytes of one message, a picture in it too."""
IDLE = 300.0
"""Seconds without any message, after which a connection is closed."""
SLOW = 20.0
"""Seconds that a client may take to read one picture."""
TAKEN_OVER, GONE_IDLE, TRY_LATER, BROKEN = 4001, 4008, 1013, 1011
"""Codes of a close: resumed elsewhere; nothing said for `IDLE`; too slow, too many or not ready; a bug."""


@router.websocket("/api/v1/live")
async def live_mode(socket: WebSocket) -> None:
    """See docs/reference/live.md."""
    await socket.accept()
    try:
        session = Session(studio_of(services_of(socket)), caller.owner(socket))
        sessions = sessions_of(socket)
        sessions.add(session)
    except FewstepError as error:  # the server is starting, or full
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.send_json(live.problem(error, None))
            await socket.close(TRY_LATER)
        return
    await _Connection(socket, session, sessions).serve()


def sessions_of(socket: WebSocket) -> Sessions:
    """The sessions of this process."""
    state = socket.app.state
    if not hasattr(state, "live_sessions"):
        state.live_sessions = Sessions()
    sessions: Sessions = state.live_sessions
    return sessions


def studio_of(services: Services) -> Studio:
    """What a session draws with."""

    def decode(text: str, mask: bool) -> Image:
        what = "mask" if mask else "image"
        settings = services.settings
        return media.decode_text(
            text, what=what, limits=settings.limits, mask=mask, allow_urls=settings.allow_urls
        )

    def encode(image: Image, draw: Draw, infotext: str | None, record: dict[str, Any] | None) -> bytes:
        quality = None if draw.format == "png" else draw.quality
        return media.encode(image, kind=draw.format, infotext=infotext, record=record, quality=quality)

    return Studio(
        info=services.generator.ainfo,
        draw=lambda order, begun: services.generator.draw(order, on_progress=lambda _: begun()),
        decode=decode,
        encode=encode,
    )


class _Connection:
    """One WebSocket and the session that it shows."""

    def __init__(self, socket: WebSocket, session: Session, sessions: Sessions) -> None:
        self._socket, self._session, self._sessions = socket, session, sessions
        self._sending = asyncio.Lock()
        self._end: asyncio.Future[tuple[int, str] | None] = asyncio.get_running_loop().create_future()
        self._drawing: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Until the client or this side has enough."""
        receiving = asyncio.create_task(self._receive())
        try:
            await self._send(_hello(self._session), None)
            self._attach(self._session)
            ends: set[asyncio.Future[Any]] = {receiving, self._end}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            pass  # gone before it began
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})
            await self._detach()
        close = self._end.result() if self._end.done() else None
        if close is not None:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._socket.close(*close)

    async def _send(self, header: dict[str, Any], data: bytes | None) -> None:
        """A message and the picture that belongs to it, with nothing between them."""
        if "error" in header:
            # No paths and no secrets, as in the answers of routes.
            redacted = caller.of(self._socket).redact(header["error"]["message"])
            header = header | {"error": header["error"] | {"message": redacted}}
        async with self._sending, asyncio.timeout(SLOW):
            await self._socket.send_text(json.dumps(header, ensure_ascii=False, separators=(",", ":")))
            if data is not None:
                await self._socket.send_bytes(data)

    async def _receive(self) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE):
                    message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return self._finish(None)
                if (answer := await self._answer(message)) is not None:
                    await self._send(answer, None)
        except TimeoutError:
            self._finish((GONE_IDLE, f"nothing was said for {IDLE:g} s"))
        except (WebSocketDisconnect, RuntimeError):
            self._finish(None)
        except Exception:
            _log.exception("live mode failed")
            self._finish((BROKEN, "a bug of fewstep; see the server's log"))

    async def _answer(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            text = message.get("text")
            if text is None:
                raise Unclear("message is binary: send JSON text, pictures in base64")
            if len(text) > MAX_MESSAGE:
                raise TooLarge(f"message has {len(text)} characters: at most {MAX_MESSAGE} are taken")
            wanted = parse(text)
        except Unclear as error:
            return live.problem(error, error.id, error.field)
        except FewstepError as error:
            return live.problem(error, None)
        if isinstance(wanted, Draw):
            return self._session.want(wanted)
        if isinstance(wanted, Ping):
            return {"type": "pong", "id": wanted.id}
        if isinstance(wanted, Stop):
            self._session.stop()
            return {"type": "stopped", "id": wanted.id}
        return await self._resume(wanted)

    async def _resume(self, wanted: Resume) -> dict[str, Any] | None:
        fresh = self._session
        if wanted.token != fresh.token:
            try:
                session = self._sessions.find(wanted.token, fresh.owner)
            except FewstepError as error:
                return live.problem(error, wanted.id, "token")
            await self._detach()
            self._sessions.drop(fresh)
            self._session = session
            await session.resume(self._send)
            self._attach(session)
        else:
            await fresh.resume(self._send)
        return None

    def _attach(self, session: Session) -> None:
        session.kick = lambda: self._finish((TAKEN_OVER, "resumed elsewhere"))
        self._drawing = asyncio.create_task(session.run(self._send))
        self._drawing.add_done_callback(self._drawn)

    async def _detach(self) -> None:
        if self._drawing is not None:
            self._drawing.remove_done_callback(self._drawn)
            self._drawing.cancel()
            await asyncio.wait({self._drawing})
            self._drawing = None
        self._sessions.leave(self._session)

    def _drawn(self, drawing_task: asyncio.Task[None]) -> None:
        """The drawing has ended by itself: the client is gone or too slow, or there is a bug."""
        error = None if drawing_task.cancelled() else drawing_task.exception()
        if isinstance(error, TimeoutError):
            self._finish((TRY_LATER, f"a picture was not read within {SLOW:g} s"))
        elif error is None or isinstance(error, WebSocketDisconnect | RuntimeError):
            self._finish(None)
        else:
            _log.error("live mode failed", exc_info=error)
            self._finish((BROKEN, "a bug of fewstep; see the server's log"))

    def _finish(self, close: tuple[int, str] | None) -> None:
        if not self._end.done():
            self._end.set_result(close)


def _hello(session: Session) -> dict[str, Any]:
    return {
        "type": "hello",
        "version": 1,
        "token": session.token,
        "idle_ms": IDLE_MS,
        "resume_seconds": live.RESUME,
        "idle_seconds": IDLE,
        "max_message": MAX_MESSAGE,
    }
