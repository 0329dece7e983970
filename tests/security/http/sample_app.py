"""A small application with a route of every kind, guarded and answering faults as the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request, UploadFile, WebSocket
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from fewstep import errors
from fewstep.server import faults, security
from fewstep.server.settings import ServerSettings

FAILURES: dict[str, Exception] = {
    "usage": errors.UsageError("steps is 0: give 1 or more"),
    "missing": errors.NotFoundError("model x is not known; there is emoji-128"),
    "data": errors.DataError("image: damaged"),
    "full": errors.QueueFull("16 orders wait; try again", retry_after=2.2),
    "starting": errors.NotReady("the model is being loaded"),
    "late": errors.Expired("not done in 300 s"),
    "engine": errors.EngineError("the model drew nothing finite"),
    "large": errors.TooLarge("too many pixels"),
    "memory": MemoryError(),
    "http": HTTPException(418, "a teapot", {"X-Pot": "tea"}),
    "bug": ZeroDivisionError("division by zero in /home/someone/secret place/x.py"),
    "group": ExceptionGroup("unhandled errors", [errors.UsageError("inside of a group")]),
}


class Wish(BaseModel):
    model_config = ConfigDict(extra="allow")

    prompt: str = ""
    steps: int = Field(1, ge=1, le=150)


def sample_app(settings: ServerSettings, **options: Any) -> FastAPI:
    app = FastAPI()
    router = APIRouter()

    @app.get("/healthz")
    @app.get("/readyz")
    @app.get("/metrics")
    @app.get("/")
    async def well() -> dict[str, str]:
        return {"status": "ok"}

    @router.post("/sdapi/v1/txt2img")
    @router.post("/v1/images/generations")
    @router.post("/api/v1/jobs")
    async def draw(wish: Wish, request: Request) -> dict[str, Any]:
        return {"steps": wish.steps, "owner": security.owner(request), "size": len(wish.prompt)}

    @router.post("/sdapi/v1/interrupt")
    async def interrupt() -> dict[str, str]:
        return {}

    @router.post("/v1/images/edits")
    async def edit(image: UploadFile) -> dict[str, int]:
        return {"size": len(await image.read())}

    @router.post("/api/v1/uploads")
    async def upload(request: Request) -> dict[str, int]:
        size = 0
        async for part in request.stream():
            size += len(part)
        return {"size": size}

    @router.get("/api/v1/jobs/{job_id}")
    async def job(job_id: int) -> dict[str, int]:
        return {"id": job_id}

    @router.get("/api/v1/images/{name}")
    async def picture(name: str) -> Response:
        return Response(b"x", media_type="image/png", headers={"Cache-Control": "private, max-age=60"})

    @router.get("/api/v1/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(3):
                yield f"{number}\n".encode()
                await asyncio.sleep(0)

        return StreamingResponse(parts())

    @router.get("/api/v1/broken-stream")
    async def broken() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"begun"
            raise ValueError("in the middle")

        return StreamingResponse(parts())

    @router.get("/api/v1/fail/{kind}")
    @router.get("/v1/fail/{kind}")
    @router.get("/sdapi/v1/fail/{kind}")
    async def fail(kind: str) -> None:
        if kind in FAILURES:
            raise FAILURES[kind]

    @router.websocket("/api/v1/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(security.owner(socket))
        if await socket.receive_text() == "fail":
            raise ValueError("in a socket")
        await socket.close()

    app.include_router(router)
    inner = FastAPI()

    @inner.get("/hidden")
    async def hidden() -> dict[str, str]:
        return {"hidden": "yes"}

    app.mount("/inner", inner)
    app.mount("/files", StaticFiles(directory="."))
    faults.install(app)
    security.protect(app, settings, **options)
    return app
