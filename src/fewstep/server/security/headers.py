"""Headers that every answer has, unless a route set its own."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope, Send

from fewstep.server import caller

STRICT: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of everything that is no page: nothing is loaded, run, sent or framed."""

_ALWAYS: Final = {
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer, under which browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")


def request_id(scope: Scope) -> str:
    """The id that a client or proxy gave, where it looks like one; else 128 random bits."""
    given = caller.header_values(scope, b"x-request-id")
    return given[0] if len(given) == 1 and _GIVEN_ID.fullmatch(given[0]) else secrets.token_hex(16)


def with_headers(scope: Scope, send: Send, pages: Mapping[str, str]) -> Send:
    """Return a ``send`` that completes the headers of a response.

    Args:
        scope: of the request.
        send: where the response goes.
        pages: Content-Security-Policy by prefix of the path, for what a browser shows.
    """
    path, began = caller.path_of(scope), time.perf_counter()
    page = max((prefix for prefix in pages if path.startswith(prefix)), key=len, default=None)

    async def complete(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(scope=message)
            for name, value in _ALWAYS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", STRICT if page is None else pages[page])
            headers["X-Request-Id"] = caller.request_id(scope)
            if path.startswith("/sdapi/"):
                headers["X-Process-Time"] = f"{time.perf_counter() - began:.4f}"
        await send(message)

    return complete
