"""Keys: by which headers they come, how they are compared, and the cookie that stands for one in a browser.

The cookie holds the key's name, a time, a nonce, and their HMAC under a key made from the secret by scrypt.
It holds after a restart and on every replica, and takes no memory; a stolen one is no shortcut to a short
secret, because of scrypt. Logging out is remembered by this process alone: elsewhere the cookie is deleted by
the browser, and ends by its time or with a new secret.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Final

from starlette.types import Scope

from fewstep.server import caller
from fewstep.server.login import SESSION_SECONDS
from fewstep.server.settings import ServerSettings

_MAX_REVOKED: Final = 10_000
_MAX_CREDENTIAL: Final = 4_096


class Keyring:
    """The keys of a server. Without any, everybody has the empty name."""

    def __init__(self, settings: ServerSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._secrets = {key.name: key.secret.get_secret_value().encode("utf-8") for key in settings.keys}
        self._digests = {name: hashlib.sha256(secret).digest() for name, secret in self._secrets.items()}
        self._clock = clock
        self._revoked: dict[str, float] = {}
        # Cookies do not tell ports apart: two servers on one machine would overwrite each other's.
        self.cookie = f"fewstep_session_{settings.port}"

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def name_of(self, scope: Scope) -> str | None:
        """Name of the key that a request carries in a header or cookie; None where it has no valid one."""
        for credential in _credentials(scope["headers"]):
            if (name := self.match(credential)) is not None:
                return name
        token = self.token(scope)
        return None if token is None else self.session(token)

    def match(self, secret: bytes) -> str | None:
        """Name of the key with this secret. All are compared, each in constant time."""
        digest = hashlib.sha256(secret).digest()
        found: str | None = None
        for name, own in self._digests.items():
            if hmac.compare_digest(digest, own):
                found = name
        return found

    def token(self, scope: Scope) -> str | None:
        """The session cookie of a request."""
        for value in caller.header_values(scope, b"cookie"):
            for part in value.split(";"):
                key, _, content = part.strip().partition("=")
                if key == self.cookie:
                    return content
        return None

    def issue(self, name: str) -> str:
        """Return a new session of a key."""
        body = f"{name}.{int(self._clock()) + SESSION_SECONDS}.{secrets.token_hex(16)}"
        return f"{body}.{self._sign(name, body)}"

    def session(self, token: str) -> str | None:
        """Name of the key of a session that is still good."""
        body, _, signature = token.rpartition(".")
        name, ends, nonce = [*body.rsplit(".", 2), "", ""][:3]
        if name not in self._secrets or not (ends.isascii() and ends.isdigit() and len(ends) < 16):
            return None
        if not hmac.compare_digest(
            signature.encode("latin-1", "replace"), self._sign(name, body).encode("ascii")
        ):
            return None
        return None if int(ends) <= self._clock() or nonce in self._revoked else name

    def revoke(self, token: str) -> None:
        """End a session, in this process."""
        if self.session(token) is None:
            return
        now = self._clock()
        self._revoked = {nonce: ends for nonce, ends in self._revoked.items() if ends > now}
        while len(self._revoked) >= _MAX_REVOKED:
            del self._revoked[next(iter(self._revoked))]
        _, ends, nonce, _ = token.rsplit(".", 3)
        self._revoked[nonce] = float(ends)

    def _sign(self, name: str, body: str) -> str:
        return hmac.new(_derived(self._secrets[name]), body.encode("utf-8"), hashlib.sha256).hexdigest()


@functools.lru_cache(maxsize=64)
def _derived(secret: bytes) -> bytes:
    return hashlib.scrypt(secret, salt=b"fewstep session 1", n=1 << 14, r=8, p=1, dklen=32)


def _credentials(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Secrets in headers: ``Authorization: Bearer``, the password of ``Basic``, and ``X-API-Key``."""
    found: list[bytes] = []
    for name, value in headers:
        if len(value) > _MAX_CREDENTIAL:
            continue
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(rest.strip())
            elif scheme.lower() == b"basic":
                try:
                    found.append(base64.b64decode(rest.strip(), validate=True).partition(b":")[2])
                except (binascii.Error, ValueError):
                    continue
    return found[:4]
