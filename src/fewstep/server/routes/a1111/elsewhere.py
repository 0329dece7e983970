"""What the WebUI does by its API and fewstep does by its command line: said, with the command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from fewstep.server.routes.a1111.given import ERRORS, PREFIX

router = APIRouter(prefix=PREFIX, responses=ERRORS)

_COMMANDS = {
    "create/embedding": "an embedding is created and trained by: fewstep train embedding FOLDER",
    "train/embedding": "an embedding is trained by: fewstep train embedding FOLDER",
    "create/hypernetwork": "there are no hypernetworks; an adapter is trained by: fewstep train lora FOLDER",
    "train/hypernetwork": "there are no hypernetworks; an adapter is trained by: fewstep train lora FOLDER",
}


def _told(path: str, text: str) -> Callable[[], Awaitable[JSONResponse]]:
    async def route() -> JSONResponse:
        content: dict[str, Any] = {"error": "NotImplemented", "detail": text, "body": "", "errors": text}
        return JSONResponse(content, 501)

    route.__name__ = path.replace("/", "_")
    return route


for _path, _text in _COMMANDS.items():
    router.add_api_route(
        f"/{_path}", _told(_path, _text), methods=["POST"], summary="Not here", description=_text,
        status_code=501, response_class=JSONResponse,
    )  # fmt: skip
