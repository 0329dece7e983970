"""The studio's place in a server: a page that loads itself at once, and Gradio's when it is built.

Importing Gradio takes longer than starting the server does, so it begins in a thread when the server has
drawn its first picture, or failed to. Until then `/studio/` answers with a page that asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.studio.words import LANGUAGES, Words, language_of

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger("fewstep.studio")

PATH: Final = "/studio"
POLICIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # Gradio's page has scripts and styles of its own in line, and makes functions from text (the island's
        # templates are such). Nothing is loaded from, or sent to, anywhere but this server.
        PATH: "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
        "font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    }
)
"""Content-Security-Policy by prefix of the path, for `fewstep.server.app.create_app`."""
UPLOADS: Final = tuple(
    f"{PATH}/{language}/gradio_api/{way}" for language in LANGUAGES for way in ("upload", "component_server")
)
"""Paths that take files as forms, for `fewstep.server.app.create_app`; the second takes what is painted."""

_STREAM: Final = re.compile(r"/gradio_api/(heartbeat/[^/]+|queue/data)$")
"""Paths of what Gradio sends for as long as a page is open."""

_LOADING: Final = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="1"><title>fewstep</title><style>
html{{color-scheme:light dark;font:1.1rem system-ui,sans-serif}}
body{{min-height:90vh;display:grid;place-content:center;justify-items:center;gap:1rem}}
i{{width:9rem;height:.3rem;border-radius:1rem;animation:go 1.2s linear infinite;
background:linear-gradient(90deg,#7c3aed 40%,#7c3aed33 40%) 0/200%}}
@keyframes go{{to{{background-position:-200%}}}}
</style></head><body><main><h1>fewstep</h1><p>{text}</p></main><i aria-hidden="true"></i></body></html>
"""


def attach(app: FastAPI, *, warm: Callable[[], bool], data: os.PathLike[str]) -> Callable[[], None]:
    """Give a server's application the studio, below `PATH`, and send its start page there.

    Args:
        app: not yet started.
        warm: whether the server has got past the work of its own start.
        data: folder of the server; the studio's uploads and settings lie below it.

    Returns:
        A function for when the server ends: it ends the streams on which open pages wait, which last as long
        as their pages do. Call it in the server's own thread.
    """
    studio = _Later(warm, os.fspath(data))
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncIterator[None]:
        async with inner(started), studio.running():
            yield

    app.router.lifespan_context = lifespan
    app.add_route("/", _start, include_in_schema=False)
    app.add_route("/favicon.ico", _icon, include_in_schema=False)
    app.add_route("/manifest.json", _manifest, include_in_schema=False)
    app.mount(PATH, studio)
    return studio.hang_up


async def _start(request: Request) -> Response:
    return RedirectResponse(f"{PATH}/{language_of(request.headers, request.cookies)}/")


async def _icon(_: Request) -> Response:
    # Gradio's page names no icon before its script runs, and browsers then ask for this one.
    icon = resources.files("fewstep.studio").joinpath("assets", "icon.svg").read_bytes()
    return Response(icon, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})


async def _manifest(_: Request) -> Response:
    # Gradio's page names one at the server's root, whatever it is told of its own path.
    icon = {"src": "/favicon.ico", "type": "image/svg+xml", "sizes": "any"}
    return JSONResponse({"name": "fewstep", "start_url": PATH + "/", "display": "browser", "icons": [icon]})


def _forgotten(error: BaseException | None) -> bool:
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    return isinstance(cause, HTTPException) and cause.status_code == 404


class _Later:
    """The pages, once there are any."""

    def __init__(self, warm: Callable[[], bool], data: str) -> None:
        self._warm = warm
        self._data = data
        self._app: ASGIApp | None = None
        self._failure: str | None = None
        self._over = asyncio.Event()

    def hang_up(self) -> None:
        """End the streams of open pages, and every later one at once."""
        self._over.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
            if path == "/":
                request = Request(scope, receive)
                await RedirectResponse(f"{PATH}/{language_of(request.headers, request.cookies)}/")(
                    scope, receive, send
                )
                return
            if self._app is None:
                await self._loading(path)(scope, receive, send)
                return
        if self._app is None:
            return
        if scope["type"] == "http" and _STREAM.search(scope["path"]):
            await self._until_over(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _until_over(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and end the answer when the server ends: cut off by uvicorn, each would log a traceback.

        Gradio's page gives its stream up when it is about to be left, and asks for it again when something
        happens in it before the next one is there. Its server has then forgotten the session, says so as the
        stream's only event, and raises: that event is all the answer there is.
        """
        begun = cut = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if not cut:
                begun = True
                await send(message)

        answer = asyncio.ensure_future(app(scope, receive, sending))
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((answer, over), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                cut = True
                answer.cancel()
                await asyncio.wait((answer,))
            elif not (begun and _forgotten(answer.exception())):
                return await answer
            if begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await Response(status_code=503, headers={"Retry-After": "1"})(scope, receive, send)
        finally:
            over.cancel()
            answer.cancel()

    def _loading(self, path: str) -> Response:
        language = path.split("/")[1]
        words = Words(language if language in LANGUAGES else "en")
        text = words("page.loading") if self._failure is None else words("page.failed", why=self._failure)
        page = _LOADING.format(language=words.language, text=html.escape(text))
        return HTMLResponse(page, status_code=503, headers={"Retry-After": "1"})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Build the pages meanwhile, and close what they opened at the end."""
        end = asyncio.Event()
        task = asyncio.create_task(self._run(end))
        try:
            yield
        finally:
            end.set()
            await task

    async def _run(self, end: asyncio.Event) -> None:
        try:
            while not (self._warm() or end.is_set()):
                await asyncio.sleep(0.05)
            if end.is_set():
                return
            app = await asyncio.to_thread(_build, self._data)
            async with app.router.lifespan_context(app):
                self._app = app
                await end.wait()
        except ImportError as error:
            self._failure = f'{error.name} is not installed; install it with: pip install "fewstep[serve]"'
        except Exception:
            _log.exception("the studio could not start")
            self._failure = "see the server's log"


def _build(data: str) -> Starlette:
    """The pages in every language, as one application."""
    from fewstep.studio import quiet

    quiet.before_import(data)
    import gradio
    from fastapi import FastAPI

    from fewstep.studio import page

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for language in LANGUAGES:
        look = page.look()
        gradio.mount_gradio_app(
            app, page.build(language), f"/{language}", footer_links=[], run_history=False, show_error=True,
            ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
            max_file_size="64mb", app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
            theme=look.theme, css=look.css, js=look.js, head=look.head,
        )  # fmt: skip
    return app
