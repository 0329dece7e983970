"""Signed links: a picture's address that a browser may fetch without a key, for a while.

A link holds a token ``EXPIRES.OWNER.SIGNATURE``: seconds since 1970, the name of the owner's key, and an
HMAC-SHA-256 (RFC 2104) of these and the path, by a secret that scrypt (RFC 7914) makes from that key. So a
link is good for one path, ends with its time, and with the key that it was made with; a leaked one is no
shortcut to a short key.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from starlette.types import Scope

    from fewstep.server.settings import ServerSettings

LIFE = 3600.0
"""Seconds, as of OpenAI's links."""
PARAMETER = "token"
"""Of the query."""
PREFIX = "/api/v1/images/"
"""Where links may lead."""
_PURPOSE = b"fewstep signed link 1"
_LONGEST = 256


def sign(settings: ServerSettings, path: str, owner: str, *, now: float | None = None) -> str | None:
    """A token for one path; None where none is needed, since there are no keys.

    Args:
        settings: the server's.
        path: of the address, without query.
        owner: name of the key that the picture belongs to.
        now: seconds since 1970; None is the clock's.
    """
    secret = _secret(settings, owner)
    if secret is None:
        return None
    expires = str(int((time.time() if now is None else now) + LIFE))
    return f"{expires}.{_text(owner.encode())}.{_text(_signature(secret, expires, owner, path))}"


def owner_of(settings: ServerSettings, scope: Scope, path: str, *, now: float | None = None) -> str | None:
    """The owner that a request's token lets in; None for one without, or with one that is not good.

    Only reading (GET and HEAD) of pictures is let in.

    Args:
        settings: the server's.
        scope: of the request.
        path: that it asks for, below the server's root path, decoded.
        now: as of `sign`.
    """
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or not path.startswith(PREFIX):
        return None
    query: bytes = scope.get("query_string", b"")
    if len(query) > 4 * _LONGEST:
        return None
    tokens = [value for name, value in parse_qsl(query.decode("latin-1")) if name == PARAMETER]
    return verify(settings, path, tokens[0], now=now) if len(tokens) == 1 else None


def verify(settings: ServerSettings, path: str, token: str, *, now: float | None = None) -> str | None:
    """The owner that a token for a path lets in, None for one that is not good."""
    if len(token) > _LONGEST or token.count(".") != 2:
        return None
    expires, name, signature = token.split(".")
    try:
        owner, given = _bytes(name).decode(), _bytes(signature)
        until = int(expires) if expires.isascii() and expires.isdigit() else -1
    except (ValueError, binascii.Error):
        return None
    if (time.time() if now is None else now) >= until:
        return None
    secret = _secret(settings, owner)
    if secret is None or not hmac.compare_digest(_signature(secret, expires, owner, path), given):
        return None
    return owner


def _secret(settings: ServerSettings, owner: str) -> bytes | None:
    for key in settings.keys:
        if key.name == owner:
            return _derived(key.secret.get_secret_value().encode())
    return None


@functools.lru_cache(maxsize=64)
def _derived(secret: bytes) -> bytes:
    return hashlib.scrypt(secret, salt=_PURPOSE, n=1 << 14, r=8, p=1, dklen=32)


def _signature(secret: bytes, expires: str, owner: str, path: str) -> bytes:
    return hmac.digest(secret, "\n".join((expires, owner, path)).encode(), hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
