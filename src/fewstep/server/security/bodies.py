"""How a request's body may come: of which kind, how large, how fast, and if JSON, of which shape."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from fewstep.errors import TooLarge
from fewstep.server import caller
from fewstep.server.caller import header_values
from fewstep.server.security.json_guard import MalformedJson, check_json
from fewstep.server.settings import Limits

MULTIPART: Final = ("/v1/images/edits", "/v1/images/variations", "/api/v1/uploads", "/api/v1/datasets")
"""Paths, also those below them, that take files as forms and as pictures."""
FORMS: Final = ("/login",)
MAX_FORM: Final = 4_096
"""Bytes of the login page's form."""

_THROWN_AWAY: Final = 4
"""Times `max_body` that is read of a refused body."""
_IN_A_THREAD: Final = 1 << 18
"""Bytes from which a body is looked through in a thread."""
_UTF8: Final = re.compile(r'charset="?utf-?8"?', re.IGNORECASE)


@dataclass(slots=True)
class Arrival:
    """How far a request's body is."""

    complete: bool = True
    error: Exception | None = None
    """Why it was refused while it was read: by then the application's own error may hide that."""
    deadline: float | None = None
    """Until when it is waited for, by the loop's clock; None before the first look at it."""


async def admit(
    scope: Scope, receive: Receive, limits: Limits, arrival: Arrival, multipart: Sequence[str] = MULTIPART
) -> Receive:
    """Check a request's body, and return what the application reads it from.

    JSON is read and checked here; other kinds are counted while the application reads them.

    Raises:
        TooLarge: more bytes than are taken, declared or counted.
        HTTPException: 400 for a malformed body or length, 408 for one that is too slow, 415 for another kind.
        UsageError: JSON that `fewstep.server.security.json_guard.check_json` refuses.
        ClientDisconnect: the client went away.
    """
    path = caller.path_of(scope)
    limit = MAX_FORM if path in FORMS else limits.max_body
    length = _length(scope)
    if length is not None and length > limit:
        arrival.complete = False
        raise _too_large(limit)
    if not length and not header_values(scope, b"transfer-encoding"):
        return receive
    arrival.complete = False
    limited = _limited(receive, limit, _deadline(arrival, limits), limits.body_seconds, arrival)
    kind = _kind(scope)
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return await _checked(limited, receive)
    if path in FORMS and kind == "application/x-www-form-urlencoded":
        return limited
    if (kind == "multipart/form-data" or kind.startswith("image/")) and _below(path, multipart):
        return limited
    raise HTTPException(415, "the body must be JSON, with Content-Type: application/json")


async def throw_away(receive: Receive, limits: Limits, arrival: Arrival) -> None:
    """Read on what is left of a body after its answer, so that the answer arrives.

    A connection that is closed on bytes not read is reset, and a client that is still sending may see the
    reset instead of the answer. Ends with the body, with the time that a body has, or after a few times the
    bytes that one may have; nothing is kept.
    """
    left = _THROWN_AWAY * limits.max_body
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(_deadline(arrival, limits)):
            while left > 0 and not arrival.complete:
                message = await receive()
                if message["type"] != "http.request":
                    return
                left -= len(message.get("body", b""))
                arrival.complete = not message.get("more_body", False)


def _deadline(arrival: Arrival, limits: Limits) -> float:
    if arrival.deadline is None:
        arrival.deadline = asyncio.get_running_loop().time() + limits.body_seconds
    return arrival.deadline


def _limited(receive: Receive, limit: int, deadline: float, seconds: float, arrival: Arrival) -> Receive:
    count = 0

    async def limited() -> Message:
        nonlocal count
        if arrival.complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            arrival.error = HTTPException(
                408, f"the body was not complete within {seconds:g} seconds; send it faster"
            )
            raise arrival.error from None
        if message["type"] == "http.request":
            count += len(message.get("body", b""))
            arrival.complete = not message.get("more_body", False)
            if count > limit:
                arrival.error = _too_large(limit)
                raise arrival.error
        return message

    return limited


async def _checked(limited: Receive, receive: Receive) -> Receive:
    parts: list[bytes] = []
    while True:
        message = await limited()
        if message["type"] != "http.request":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    parts.clear()
    try:
        if len(body) < _IN_A_THREAD:
            check_json(body)
        else:
            await asyncio.to_thread(check_json, body)
    except MalformedJson as error:
        raise HTTPException(400, f"the body is not JSON ({error}); send a JSON object in UTF-8") from None
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    del body

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _length(scope: Scope) -> int | None:
    lengths = set(header_values(scope, b"content-length"))
    if not lengths:
        return None
    text = lengths.pop()
    if lengths or not (text.isascii() and text.isdigit() and len(text) < 20):
        raise HTTPException(400, "Content-Length must be one number")
    return int(text)


def _kind(scope: Scope) -> str:
    kinds = header_values(scope, b"content-type")
    if len(kinds) != 1:
        return ""
    kind, _, parameters = kinds[0].partition(";")
    if "charset" in parameters.lower() and not _UTF8.search(parameters):
        return ""
    return kind.strip().lower()


def _below(path: str, parents: Sequence[str]) -> bool:
    return any(path == parent or path.startswith(parent.rstrip("/") + "/") for parent in parents)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"a body of more than {limit:,} bytes is not taken; send less at once")
