"""Logging in with a browser, which sends no headers of its own: a form, and a cookie in place of the key."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Final, Literal, TypedDict
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from fewstep.server import caller

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fewstep.server.security.keys import Keyring

SESSION_SECONDS: Final = 7 * 86_400
_CSP: Final = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
_PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>fewstep</title></head>
<body>
<h1>fewstep</h1>
{content}
</body>
</html>
"""
_FORM: Final = """<form method="post" action="{root}/login">
<p><label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button></p>
{note}
</form>"""
_INSIDE: Final = """<p>You are logged in as {name}. <a href="{root}/">To the start</a></p>
<form method="post" action="{root}/logout"><button>Log out</button></form>"""


class _CookieOptions(TypedDict):
    max_age: int
    path: str
    httponly: bool
    samesite: Literal["strict"]
    secure: bool


def add_routes(app: FastAPI, keyring: Keyring) -> None:
    """Add ``/login`` and ``/logout`` to an application; they are not in its OpenAPI document."""

    async def show(request: Request) -> Response:
        if not keyring:
            return _html(request.scope, "<p>This server needs no key.</p>")
        name = caller.owner(request)
        if name:
            return _html(request.scope, _INSIDE, name=name)
        return page(request.scope)

    async def enter(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        name = keyring.match(fields.get("key", [""])[0].strip().encode("utf-8"))
        if name is None:
            return page(request.scope, status=401, note="This key is not known.")
        # Always the start page: a page to go on to, named by the request, could be anybody's.
        response = _to(request, "/")
        response.set_cookie(keyring.cookie, keyring.issue(name), **_cookie(request))
        return response

    async def leave(request: Request) -> Response:
        token = keyring.token(request.scope)
        if token is not None:
            keyring.revoke(token)
        response = _to(request, "/login")
        options = _cookie(request)
        options["max_age"] = 0
        response.set_cookie(keyring.cookie, "", **options)
        return response

    async def login(request: Request) -> Response:
        return await (enter if request.method == "POST" else show)(request)

    app.add_route("/login", login, methods=["GET", "POST"], include_in_schema=False)
    app.add_route("/logout", leave, methods=["POST"], include_in_schema=False)


def page(scope: Scope, *, status: int = 200, note: str = "") -> Response:
    """The login page."""
    response = _html(scope, _FORM, note=f"<p>{html.escape(note)}</p>" if note else "")
    response.status_code = status
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="fewstep"'
    return response


def wants_page(scope: Scope) -> bool:
    """Whether a browser asks for something to show, so that a login page serves it better than an error."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    mode = caller.header_values(scope, b"sec-fetch-mode")
    accepted = ",".join(caller.header_values(scope, b"accept"))
    return "text/html" in accepted and mode in ([], ["navigate"])


def _cookie(request: Request) -> _CookieOptions:
    return {
        "max_age": SESSION_SECONDS, "path": "/", "httponly": True, "samesite": "strict",
        "secure": request.url.scheme == "https",
    }  # fmt: skip


def _to(request: Request, path: str) -> Response:
    return RedirectResponse(_root(request.scope) + path, status_code=303)


def _html(scope: Scope, content: str, **values: str) -> Response:
    root = html.escape(_root(scope))
    safe = {name: value if name == "note" else html.escape(value) for name, value in values.items()}
    text = _PAGE.format(content=content.format(root=root, **safe))
    return HTMLResponse(text, headers={"Content-Security-Policy": _CSP})


def _root(scope: Scope) -> str:
    return str(scope.get("root_path", "")).rstrip("/")
