"""The middleware through which every request and WebSocket goes before any route sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.errors import Unauthorized
from fewstep.server import caller, faults, links, login
from fewstep.server.redaction import Redactor
from fewstep.server.security import bodies, headers
from fewstep.server.security.keys import Keyring
from fewstep.server.security.origins import Origins
from fewstep.server.settings import Limits, ServerSettings

OPEN: Final = frozenset({"/healthz", "/readyz", "/login"})
"""Paths that need no key."""

_CORS_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_CORS_HEADERS: Final = ("Authorization", "Content-Type", "Idempotency-Key", "X-API-Key", "X-Request-Id")
_CORS_SHOWN: Final = ("Retry-After", "X-Request-Id", "X-Process-Time")


class Guard:
    """Host, Origin, key and body, in this order; then the application, whose exceptions end here too.

    Plain ASGI: responses and WebSockets stream through. Refusals have the same headers as answers, and the
    body of the API that was asked.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        keyring: Keyring,
        pages: Mapping[str, str],
        multipart: Sequence[str],
    ) -> None:
        self._app = app
        self._settings = settings
        self._limits = settings.limits
        self._keyring = keyring
        self._origins = Origins(settings)
        self._pages = pages
        self._multipart = multipart
        self._redactor = Redactor(settings)
        self._inner: ASGIApp = self._admitted
        if settings.origins:
            # No credentials: a page of another origin sends a key in a header, never our cookie.
            self._inner = CORSMiddleware(
                self._admitted,
                allow_origins=self._origins.pages,
                allow_methods=_CORS_METHODS,
                allow_headers=_CORS_HEADERS,
                expose_headers=_CORS_SHOWN,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        who = caller.Caller(request_id=headers.request_id(scope), redact=self._redactor)
        caller.attach(scope, who)
        send = headers.with_headers(scope, send, self._pages)
        arrival = bodies.Arrival(complete=not _has_body(scope))
        answer = _Answer(scope, receive, send, arrival, self._limits)
        try:
            self._origins.check(scope)
        except Exception as error:
            await answer.refuse(error)
            return
        await self._inner(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival = bodies.Arrival(complete=not _has_body(scope))
        answer = _Answer(scope, receive, send, arrival, self._limits)
        try:
            self._check_key(scope)
            if scope["type"] == "http":
                receive = await bodies.admit(scope, receive, self._limits, arrival, self._multipart)
            await self._app(scope, receive, answer.send)
        except Exception as error:
            error = arrival.error or error
            if isinstance(faults.unwrapped(error), ClientDisconnect):
                return
            await answer.refuse(error)

    def _check_key(self, scope: Scope) -> None:
        if not self._keyring:
            return
        path = caller.path_of(scope)
        name = self._keyring.name_of(scope) or links.owner_of(self._settings, scope, path)
        if name is not None:
            caller.of(scope).owner = name
        elif not (scope["type"] == "http" and path in OPEN):
            raise Unauthorized("a key is needed: send Authorization: Bearer KEY, or log in at /login")


class _Answer:
    """A ``send`` that knows how far the answer is, so that a refusal can take its place until it begins."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, arrival: bodies.Arrival, limits: Limits
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._pass_on = send
        self._arrival = arrival
        self._limits = limits
        self._begun = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and self._arrival.error is not None:
            # The application met the exception of `bodies` and made something of its own of it.
            self._replaced = True
            await self.refuse(self._arrival.error)
        if self._replaced:
            return
        if kind == "http.response.start":
            self._hang_up(MutableHeaders(scope=message))
        if kind in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            self._begun = True
        elif kind == "websocket.close":
            self._begun = self._replaced = True
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Answer an exception; where the answer has begun, end it."""
        scope = self._scope
        if self._begun:
            if not self._replaced:
                faults.log_trace(scope, error)
                if scope["type"] == "websocket":
                    await self._send({"type": "websocket.close", "code": 1011, "reason": ""})
            return
        self._begun = True
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            faults.answer(scope, error)  # logs it
            await self._send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if isinstance(error, Unauthorized) and login.wants_page(scope):
            response = login.page(scope, status=401)
        else:
            response = faults.answer(scope, error)
            if isinstance(error, Unauthorized) and caller.header_values(scope, b"sec-fetch-mode"):
                # A script of a page asked: no box for a user's name and password on top of the page.
                response.headers["WWW-Authenticate"] = 'Bearer realm="fewstep"'
        self._hang_up(response.headers)
        await response(scope, self._receive, self._send)

    async def _send(self, message: Message) -> None:
        """Pass a message on; the last one of an answer only when the rest of the request's body is read."""
        ends = message["type"] == "http.response.body" and not message.get("more_body", False)
        if ends and not self._arrival.complete:
            await self._pass_on({**message, "more_body": True})
            await bodies.throw_away(self._receive, self._limits, self._arrival)
            message = {"type": "http.response.body", "body": b""}
        await self._pass_on(message)

    def _hang_up(self, headers: MutableHeaders) -> None:
        """Close the connection after the answer, where the rest of the body would come in between."""
        if self._scope["type"] == "http" and not self._arrival.complete:
            headers["Connection"] = "close"


def _has_body(scope: Scope) -> bool:
    lengths = caller.header_values(scope, b"content-length")
    return lengths not in ([], ["0"]) or bool(caller.header_values(scope, b"transfer-encoding"))
